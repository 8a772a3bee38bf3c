"""TIES: trim each task vector, elect a sign for each parameter, average what agrees with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_fraction
from mergestream.strategies._folds import elected, zeros
from mergestream.strategies._ranks import smallest_magnitudes
from mergestream.strategies.strategy import strategy

if TYPE_CHECKING:
    from mergestream.merging.vectors import TaskVectors

FEW = 64  # undecided parameters of a tile that are remembered one by one
SCOPES = ("encoder", "clip", "tensor")


def survey(vectors: TaskVectors, *, density: float = 0.2, scope: str = "encoder") -> dict[str, Any]:
    """The magnitude that each task vector is trimmed at.

    Args:
        vectors: all task vectors.
        density: fraction of the parameters that survives, in (0, 1].
        scope: ``encoder`` ranks the image tower's parameters; ``clip`` ranks the whole CLIP, as the published code
            does: the frozen text tower's zeros come last, so the tower keeps more of its own; ``tensor`` ranks each
            weight by itself.

    Raises:
        UserError: if an option is out of range.
    """
    require_fraction("strategy.density", density)
    if scope not in SCOPES:
        raise UserError(f"strategy.scope must be one of {', '.join(SCOPES)}; got strategy.scope={scope}")
    limits = thresholds(vectors, density, scope)

    names = vectors.encoder_names if scope == "encoder" else vectors.names
    return {"thresholds": limits, "ballot": Ballot(frozenset(names))}


@dataclass
class Ballot:
    """The sign that most parameters elect, found while merging: it is assumed, and the votes are counted on the way.

    Only parameters whose surviving values sum to zero depend on it. If the assumption turns out wrong, they are merged
    once more, which is cheaper than a pass over everything to count first.

    Args:
        names: weights that vote.
    """

    names: frozenset[str]
    majority: float = 1.0
    votes: float = 0.0
    open: dict[tuple[str, int], Tensor | None] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def cast(self, name: str, start: int, mass: Tensor, count: Tensor) -> None:
        """Count the votes of one tile: see `elected`."""
        votes, undecided = mass.sign().sum().item(), zeros(mass)
        undecided = undecided[count[undecided] > 0]
        with self.lock:
            self.votes += votes if name in self.names else 0
            if len(undecided):
                self.open[name, start] = undecided if len(undecided) <= FEW else None


def again(*, thresholds: dict[str, Sequence[float]], ballot: Ballot) -> dict[tuple[str, int], Tensor | None]:
    """Where the undecided parameters are, if the majority is not the assumed one."""
    ballot.majority = 1.0 if ballot.votes >= 0 else -1.0
    return ballot.open if ballot.majority < 0 else {}


def thresholds(vectors: TaskVectors, density: float, scope: str) -> dict[str, list[float]]:
    """Per weight, for each task the smallest magnitude that survives."""
    numel = {name: vectors.base.entries[name].numel for name in vectors.names}
    if scope == "tensor":
        kept = {name: math.floor(density * n) for name, n in numel.items()}
        return {name: _limits(vectors, [name], n - kept[name]) for name, n in numel.items()}
    names = vectors.encoder_names if scope == "encoder" else vectors.names
    here = sum(numel[name] for name in names)
    # The frozen parameters' zeros are the smallest of all, so they are dropped first.
    ranked = here + (vectors.frozen if scope == "clip" else 0)
    limits = _limits(vectors, names, max(0, here - int(density * ranked)))
    return dict.fromkeys(vectors.names, limits)


def _limits(vectors: TaskVectors, names: Sequence[str], dropped: int) -> list[float]:
    return [limit for (limit,) in smallest_magnitudes(vectors, names, [dropped])]


def trimmed(taus: Tensor, limits: Sequence[float]) -> Tensor:
    """The task vectors with the parameters below their limits set to zero, in place."""
    for tau, limit in zip(taus, limits, strict=True):
        # hardshrink drops |τ| ≤ λ; the next smaller float32 makes it |τ| < limit.
        torch.hardshrink(tau, _next_smaller(limit), out=tau)
    return taus


@cache
def _next_smaller(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(-1)))


@strategy(scale=0.55, survey=survey, again=again, carries=True)
def ties(taus: Tensor, *, name: str, start: int, thresholds: dict[str, Sequence[float]], ballot: Ballot) -> Tensor:
    """τ_p = mean of the τ_{t,p} that survive trimming and have the sign of their sum. Yadav et al. 2023, Algorithm 1.

    Args:
        taus: the stack [T, n].
        name: the weight.
        start: index of the first element.
        thresholds: per weight, for each task the smallest magnitude that survives.
        ballot: collects the sign that most parameters elect, which those whose surviving values sum to zero take.
    """
    merged, mass, count = elected(trimmed(taus, thresholds[name]), ballot.majority)
    ballot.cast(name, start, mass, count)
    return merged
