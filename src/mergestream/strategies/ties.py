"""TIES: trim each task vector, elect a sign for each parameter, average what agrees with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergestream.errors import UserError
from mergestream.strategies.strategy import strategy

if TYPE_CHECKING:
    from mergestream.merging.vectors import TaskVectors

SCOPES = ("encoder", "clip")


def survey(vectors: TaskVectors, *, density: float = 0.2, scope: str = "encoder") -> dict[str, Any]:
    """The magnitude that each task vector is trimmed at, and the sign that most parameters elect.

    Args:
        vectors: all task vectors.
        density: fraction of the parameters that survives, in (0, 1].
        scope: ``encoder`` ranks the image tower's parameters; ``clip`` ranks the whole CLIP, as the published code
            does: the frozen text tower's zeros come last, so the tower keeps more of its own.

    Raises:
        UserError: if an option is out of range.
    """
    if not isinstance(density, (int, float)) or isinstance(density, bool) or not 0 < density <= 1:
        raise UserError(
            f"strategy=ties needs density in (0, 1], got density={density}. "
            "Write strategy.density=0.2 for the top 20 %."
        )
    if scope not in SCOPES:
        raise UserError(f"strategy.scope must be one of {', '.join(SCOPES)}; got strategy.scope={scope}")
    names = vectors.encoder_names if scope == "encoder" else vectors.names
    frozen = vectors.frozen if scope == "clip" else 0
    thresholds = []
    for task in range(len(vectors)):
        magnitudes = torch.cat([vectors.tau(task, name).abs().flatten() for name in names])
        # The frozen parameters' zeros are the smallest of all, so they are dropped first.
        dropped = len(magnitudes) - int(density * (len(magnitudes) + frozen))
        thresholds.append(magnitudes.kthvalue(dropped).values.item() if dropped > 0 else 0.0)
    votes = sum(_mass(vectors.taus(name), thresholds).sign().sum().item() for name in names)
    return {"thresholds": thresholds, "majority": float((votes > 0) - (votes < 0))}


@strategy(scale=0.55, survey=survey)
def ties(taus: Sequence[Tensor], *, thresholds: Sequence[float], majority: float) -> Tensor:
    """τ_p = mean of the τ_{t,p} that survive trimming and have the sign of their sum. Yadav et al. 2023, Algorithm 1.

    Args:
        taus: T tensors of one shape.
        thresholds: per task, the smallest magnitude that survives.
        majority: sign of a parameter whose surviving values sum to zero.
    """
    mass = _mass(taus, thresholds)
    elected = torch.where(mass == 0, majority, mass.sign())
    total, count = torch.zeros_like(mass), torch.zeros_like(mass)
    for tau in _trimmed(taus, thresholds):
        agrees = (tau * elected) > 0
        total += torch.where(agrees, tau, 0)
        count += agrees
    return total / count.clamp(min=1)


def _trimmed(taus: Sequence[Tensor], thresholds: Sequence[float]) -> Iterator[Tensor]:
    for tau, threshold in zip(taus, thresholds, strict=True):
        yield torch.where(tau.abs() >= threshold, tau, 0)


def _mass(taus: Sequence[Tensor], thresholds: Sequence[float]) -> Tensor:
    return torch.stack(list(_trimmed(taus, thresholds))).sum(0)
