"""Model stock: the mean of the task vectors, scaled for each weight by the angle between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies._gram import grams
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Rows, SurveyedVectors


def survey(vectors: SurveyedVectors) -> dict[str, Any]:
    """Compute the ratio t of each weight."""
    return {"ratios": {name: ratio(gram) for name, gram in grams(vectors).items()}}


def ratio(gram: Tensor) -> float:
    """Return t = T cos φ / (1 + (T−1) cos φ), with cos φ the mean cosine over all pairs of task vectors.

    Args:
        gram: inner products of the task vectors, float64 [T, T].
    """
    tasks = len(gram)
    if tasks == 1:
        return 1.0
    norms = gram.diagonal().sqrt()
    cosines = torch.nan_to_num(gram / torch.outer(norms, norms))  # a task may leave a weight as it was
    cosine = float((cosines.sum() - cosines.diagonal().sum()) / (tasks * (tasks - 1)))
    cosine = max(0.0, cosine)  # the centre lies between θ₀ and the mean, not beyond θ₀
    return tasks * cosine / (1 + (tasks - 1) * cosine)


@strategy(
    scale=1.0,
    streams=True,
    propagates_nan=True,
    survey=survey,
    reference=Reference(
        "Model Stock: All we need is just a few fine-tuned models", "ECCV 2024", "https://arxiv.org/abs/2403.19522"
    ),
)
def model_stock(taus: Rows, *, name: str, ratios: dict[str, float]) -> Tensor:
    """τ = t/T Σ_t τ_t: for each weight, the point between θ₀ and the mean that is closest to the centre of the weights.

    Jang et al. 2024, Eq. 2 and its extension to N models. It was made for fine-tunes of one data set, whose task
    vectors are all at the same angle. A negative mean cosine, which unlike tasks can have, gives t = 0.

    Args:
        taus: T tensors of one shape.
        name: the weight.
        ratios: t of each weight.
    """
    return total(taus) * (ratios[name] / len(taus))
