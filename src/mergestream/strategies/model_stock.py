"""Model stock: the mean of the task vectors, weight by weight as long as the angle between them says."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies._gram import grams
from mergestream.strategies.strategy import strategy

if TYPE_CHECKING:
    from mergestream.merging.vectors import TaskVectors


def survey(vectors: TaskVectors) -> dict[str, Any]:
    """The ratio t of every weight."""
    return {"ratios": {name: ratio(gram) for name, gram in grams(vectors).items()}}


def ratio(gram: Tensor) -> float:
    """T cos φ / (1 + (T−1) cos φ), with cos φ the mean cosine over all pairs of task vectors.

    Args:
        gram: inner products of the task vectors, float64 [T, T].
    """
    tasks = len(gram)
    if tasks == 1:
        return 1.0
    norms = gram.diagonal().sqrt()
    cosines = torch.nan_to_num(gram / torch.outer(norms, norms))  # a weight that no task moved
    cosine = float((cosines.sum() - cosines.diagonal().sum()) / (tasks * (tasks - 1)))
    cosine = max(0.0, cosine)  # the centre lies between θ₀ and the mean, not behind θ₀
    return tasks * cosine / (1 + (tasks - 1) * cosine)


@strategy(scale=1.0, rows=True, carries=True, survey=survey)
def model_stock(taus: Tensor, *, name: str, ratios: dict[str, float]) -> Tensor:
    """τ = t/T Σ_t τ_t, for each weight the point between θ₀ and the mean that is closest to the centre of the weights.

    Jang et al. 2024, Eq. 2 and its extension to N models. Made for fine-tunes of one data set, whose task vectors all
    have the same angle; a negative mean cosine, as between unlike tasks, gives t = 0.

    Args:
        taus: T tensors of one shape.
        name: the weight.
        ratios: t of every weight.
    """
    return total(taus) * (ratios[name] / len(taus))
