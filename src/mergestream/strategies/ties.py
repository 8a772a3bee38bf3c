"""TIES: trim each task vector, elect a sign for each parameter, average what agrees with it."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mergestream.errors import UserError
from mergestream.strategies.strategy import strategy

if TYPE_CHECKING:
    from mergestream.merging.vectors import Block, TaskVectors

SCOPES = ("encoder", "clip")
HALF = 1 << 16  # values of half of a float's bits


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
    total = sum(vectors.base.entries[name].numel for name in names)
    frozen = vectors.frozen if scope == "clip" else 0
    # The frozen parameters' zeros are the smallest of all, so they are dropped first.
    dropped = total - int(density * (total + frozen))
    thresholds = smallest_magnitudes(vectors, names, dropped) if dropped > 0 else [0.0] * len(vectors)

    def vote(block: Block, _: Tensor, taus: Tensor) -> float:
        return _mass(taus, thresholds).sign().sum().item()

    votes = sum(vectors.map(vote, vectors.blocks(names)))
    return {"thresholds": thresholds, "majority": float((votes > 0) - (votes < 0))}


def smallest_magnitudes(vectors: TaskVectors, names: Sequence[str], k: int) -> list[float]:
    """The k-th smallest |τ_t| over the weights `names`, of every task, exactly and without sorting the model.

    Two passes over the bits of the magnitudes, whose order as integers is their order as floats: the first counts the
    upper halves and so finds that of the k-th; the second counts the lower halves of those that share it.
    """
    tasks = range(len(vectors))
    blocks = vectors.blocks(names)
    counts = torch.zeros(len(vectors), HALF, dtype=torch.int64)
    lock = Lock()

    def count_upper(_block: Block, _: Tensor, taus: Tensor) -> None:
        upper = _bits(taus) >> 16
        for t in tasks:
            found = torch.bincount(upper[t], minlength=HALF)
            with lock:
                counts[t] += found

    vectors.map(count_upper, blocks)
    before = counts.cumsum(1)
    chosen = [int(torch.searchsorted(before[t], k)) for t in tasks]
    ranks = [k - (int(before[t, chosen[t] - 1]) if chosen[t] else 0) for t in tasks]
    counts.zero_()

    def count_lower(_block: Block, _: Tensor, taus: Tensor) -> None:
        bits = _bits(taus)
        for t in tasks:
            found = torch.bincount(bits[t][bits[t] >> 16 == chosen[t]] & (HALF - 1), minlength=HALF)
            with lock:
                counts[t] += found

    vectors.map(count_lower, blocks)
    lower = [int(torch.searchsorted(counts[t].cumsum(0), ranks[t])) for t in tasks]
    bits = torch.tensor([(upper << 16) + low for upper, low in zip(chosen, lower, strict=True)], dtype=torch.int32)
    return bits.view(torch.float32).tolist()


def _bits(taus: Tensor) -> Tensor:
    return taus.abs().view(torch.int32)


@strategy(scale=0.55, survey=survey)
def ties(taus: Tensor, *, thresholds: Sequence[float], majority: float) -> Tensor:
    """τ_p = mean of the τ_{t,p} that survive trimming and have the sign of their sum. Yadav et al. 2023, Algorithm 1.

    Args:
        taus: T tensors of one shape.
        thresholds: per task, the smallest magnitude that survives.
        majority: sign of a parameter whose surviving values sum to zero.
    """
    trimmed = _trimmed(taus, thresholds)
    mass = _sum(trimmed)
    elected = torch.where(mass == 0, majority, mass.sign())
    agreeing = (trimmed * elected).clamp_(min=0)
    return _sum(agreeing) * elected / _sum(agreeing > 0).clamp(min=1)


def _trimmed(taus: Tensor, thresholds: Sequence[float]) -> Tensor:
    limits = torch.tensor(thresholds, dtype=taus.dtype, device=taus.device).view(-1, *[1] * (taus.dim() - 1))
    return torch.where(taus.abs() >= limits, taus, 0)


def _mass(taus: Tensor, thresholds: Sequence[float]) -> Tensor:
    return _sum(_trimmed(taus, thresholds))


def _sum(values: Tensor) -> Tensor:
    """Sum over the tasks, one after the other, whatever the size of the block."""
    total = values[0].float().clone()
    for row in values[1:]:
        total += row
    return total
