"""Model breadcrumbs: drop the smallest and the largest parameters of each task vector, then sum."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_fraction
from mergestream.strategies._folds import summed
from mergestream.strategies._ranks import smallest_magnitudes
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import SurveyedVectors


def survey(vectors: SurveyedVectors, *, density: float = 0.9, outliers: float = 0.01) -> dict[str, Any]:
    """Find, for each weight and task, the magnitudes between which parameters survive.

    Args:
        vectors: all task vectors.
        density: share of a weight's parameters that survives, in (0, 1].
        outliers: share that is dropped because it is too large, in [0, 1); the smallest make up the rest of what is
            dropped.

    Raises:
        UserError: if an option is out of range.
    """
    require_fraction("strategy.density", density)
    require_fraction("strategy.outliers", outliers, zero=True)
    if density + outliers > 1:
        raise UserError(
            "strategy.density + strategy.outliers must be at most 1; "
            f"got strategy.density={density} and strategy.outliers={outliers}"
        )
    limits = {}
    for name in vectors.names:
        numel = vectors.numel(name)
        large = math.floor(outliers * numel)
        small = max(0, numel - large - max(1, math.floor(density * numel)))
        # The smallest and the largest surviving magnitude; parameters of equal magnitude survive or fall together.
        limits[name] = smallest_magnitudes(vectors, [name], [min(small + 1, numel), numel - large])
    return {"limits": limits}


@strategy(
    scale=0.3,
    survey=survey,
    reference=Reference(
        "Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks",
        "ECCV 2024",
        "https://arxiv.org/abs/2312.06795",
    ),
)
def breadcrumbs(taus: Tensor, *, name: str, limits: dict[str, list[tuple[float, float]]]) -> Tensor:
    """τ = Σ_t m_t ∘ τ_t, where m_t drops the smallest magnitudes of a weight and its outliers.

    Davari & Belilovsky 2024, Eq. 3, with their λ and with mergekit's default shares.

    Args:
        taus: the stack [T, n].
        name: the weight.
        limits: per weight and task, (smallest, largest) magnitude that survives.
    """
    small, large = torch.tensor(limits[name], device=taus.device).unsqueeze(-1).unbind(1)
    size = taus.abs()
    return summed(torch.where((size >= small).logical_and_(size <= large), taus, 0.0))
