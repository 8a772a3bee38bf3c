"""Weighted averaging: the mean of the task vectors, each with its own weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.strategies._folds import total
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Rows, SurveyedVectors


def survey(vectors: SurveyedVectors, *, weights: Sequence[float] | None = None) -> dict[str, Any]:
    """Normalize the weights so that they sum to one.

    Args:
        vectors: all task vectors.
        weights: w_1 … w_T in any unit, for example the number of training samples of each task; None weights all tasks
            equally.

    Raises:
        UserError: if they are not T numbers, or sum to zero.
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


@strategy(
    scale=1.0,
    streams=True,
    propagates_nan=True,
    survey=survey,
    reference=Reference(
        "Communication-Efficient Learning of Deep Networks from Decentralized Data",
        "AISTATS 2017",
        "https://arxiv.org/abs/1602.05629",
    ),
)
def weighted_average(taus: Rows, *, weights: Sequence[float]) -> Tensor:
    """τ = Σ_t w_t τ_t / Σ_t w_t. McMahan et al. 2017, Algorithm 1, where w_t is the number of samples."""
    return total(taus, weights)
