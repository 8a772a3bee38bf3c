"""MetaGPT: the sum of the task vectors, each weighted by its squared length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies._gram import grams
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Rows, SurveyedVectors


def survey(vectors: SurveyedVectors) -> dict[str, Any]:
    """Compute λ_t from the lengths of the whole task vectors; 1/T where all of them are zero."""
    squares = torch.stack([gram.diagonal() for gram in grams(vectors).values()]).sum(0)
    whole = float(squares.sum())
    return {"weights": (squares / whole).tolist() if whole else [1 / len(vectors)] * len(vectors)}


@strategy(
    scale=1.0,
    streams=True,
    propagates_nan=True,
    survey=survey,
    reference=Reference(
        "MetaGPT: Merging Large Language Models Using Model Exclusive Task Arithmetic",
        "EMNLP 2024",
        "https://arxiv.org/abs/2406.11385",
    ),
)
def metagpt(taus: Rows, *, weights: Sequence[float]) -> Tensor:
    """τ = Σ_t λ_t τ_t with λ_t = ‖τ_t‖² / Σ_s ‖τ_s‖², the squared lengths over the whole model.

    λ minimises a bound of the mean increase of the tasks' losses if the task vectors are orthogonal. Zhou et al. 2024.

    Args:
        taus: T tensors of one shape.
        weights: λ_1 … λ_T, which sum to one.
    """
    return total(taus, weights)
