"""Fisher merging: the mean of the task vectors, each parameter weighted by how much its task needs it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mergestream.runtime.rules import require_number
from mergestream.strategies._folds import summed
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Curvature, SurveyedVectors


def survey(vectors: SurveyedVectors, *, floor: float = 1e-6) -> dict[str, Any]:
    """Open the Fisher information.

    Args:
        vectors: all task vectors.
        floor: the least that a parameter weighs, so that one without curvature is averaged.

    Raises:
        UserError: if the floor is not positive, or the Fisher information of a task is missing.
    """
    require_number("strategy.floor", floor, "positive", lambda x: x > 0)
    return {"fishers": vectors.curvature("fisher"), "floor": floor}


@strategy(
    scale=1.0,
    survey=survey,
    needs="fisher",
    reference=Reference(
        "Merging Models with Fisher-Weighted Averaging", "NeurIPS 2022", "https://arxiv.org/abs/2111.09832"
    ),
)
def fisher(taus: Tensor, *, name: str, start: int, fishers: Curvature, floor: float) -> Tensor:
    """τ = Σ_t F_t τ_t / Σ_t F_t with F_t = max(F_t, floor). Matena & Raffel 2022, Eq. 4.

    Args:
        taus: [T, n].
        name, start: of the block.
        fishers: the diagonal of the Fisher information of each task, from its own images.
        floor: see `survey`.
    """
    weights = torch.stack(list(fishers.rows(name, start, taus.shape[1:]))).clamp_(min=floor)
    return summed(weights * taus) / summed(weights)
