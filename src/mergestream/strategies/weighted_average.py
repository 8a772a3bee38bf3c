"""Weighted averaging: the mean of the task vectors, each with a weight of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.strategies._folds import total
from mergestream.strategies.strategy import strategy

if TYPE_CHECKING:
    from mergestream.merging.vectors import TaskVectors


def survey(vectors: TaskVectors, *, weights: Sequence[float] | None = None) -> dict[str, Any]:
    """Scale the weights so that they sum to one.

    Args:
        vectors: all task vectors.
        weights: w_1 … w_T, in any unit, the training samples of each task for example; None weighs all alike.

    Raises:
        UserError: if they are not T numbers with a sum that can be divided by.
    """
    numbers = [1.0] * len(vectors) if weights is None else weights
    try:
        values = np.asarray(numbers, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (len(vectors),) or not np.isfinite(values).all() or values.sum() == 0:
        raise UserError(
            f"strategy.weights must be {len(vectors)} numbers, one for each task, that do not sum to zero; "
            f"got strategy.weights={weights}"
        )
    return {"weights": (values / values.sum()).tolist()}


@strategy(scale=1.0, rows=True, carries=True, survey=survey)
def weighted_average(taus: Tensor, *, weights: Sequence[float]) -> Tensor:
    """τ = Σ_t w_t τ_t / Σ_t w_t. With the numbers of samples as weights: McMahan et al. 2017, Algorithm 1."""
    return total(taus, weights)
