"""TIES: trim each task vector, elect a sign for each parameter, average the values that agree with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergestream.runtime.rules import require_choice, require_fraction
from mergestream.strategies._folds import elected, zeros
from mergestream.strategies._ranks import smallest_magnitudes
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import SurveyedVectors

FEW = 64  # a tile with more undecided parameters is merged again as a whole
SCOPES = ("encoder", "clip", "tensor", "all")


def survey(vectors: SurveyedVectors, *, density: float = 0.2, scope: str = "encoder") -> dict[str, Any]:
    """Find the magnitude at which each task vector is trimmed.

    Args:
        vectors: all task vectors.
        density: share of the parameters that survives, in (0, 1].
        scope: which parameters are ranked together. ``encoder``: those of the image tower. ``clip``: those of the whole
            CLIP, as in the published code; the zeros of the frozen text tower rank last, so more of the image tower
            survives. ``tensor``: those of each weight. ``all``: those of all files' weights, the default for files
            that mergestream did not train.

    Raises:
        UserError: if an option is out of range.
    """
    require_fraction("strategy.density", density)
    require_choice("strategy.scope", scope, SCOPES)
    voting = vectors.encoder_names if scope == "encoder" else vectors.names
    return {"thresholds": thresholds(vectors, density, scope), "ballot": Ballot(frozenset(voting))}


@dataclass
class Ballot:
    """The sign that most parameters elect. It is assumed to be positive, and the votes are counted during the merge.

    Only parameters whose surviving values sum to zero depend on it. If the assumption proves wrong, they are merged
    again, which is cheaper than a pass over all files to count first.

    Args:
        names: the weights that vote.
        majority: the assumed sign.
        votes: parameters with a positive sum minus parameters with a negative sum, so far.
        undecided: (name, start) of tiles → positions of parameters whose sum is zero; None if there are many.
    """

    names: frozenset[str]
    majority: float = 1.0
    votes: float = 0.0
    undecided: dict[tuple[str, int], Tensor | None] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def cast(self, name: str, start: int, mass: Tensor, count: Tensor) -> None:
        """Count the votes of a tile; `mass` and `count` are those of `elected`."""
        votes, zero = mass.sign().sum().item(), zeros(mass)
        zero = zero[count[zero] > 0]
        with self.lock:
            self.votes += votes if name in self.names else 0
            if len(zero):
                self.undecided[name, start] = zero if len(zero) <= FEW else None


def revisit(*, thresholds: dict[str, Sequence[float]], ballot: Ballot) -> dict[tuple[str, int], Tensor | None]:
    """Return where the undecided parameters are, if the majority is not the assumed one."""
    ballot.majority = 1.0 if ballot.votes >= 0 else -1.0
    return dict(ballot.undecided) if ballot.majority < 0 else {}


def thresholds(vectors: SurveyedVectors, density: float, scope: str) -> dict[str, list[float]]:
    """Return, for each weight and task, the smallest magnitude that survives."""
    numel = {name: vectors.numel(name) for name in vectors.names}
    if scope == "tensor":
        return {name: _limits(vectors, [name], n - math.floor(density * n)) for name, n in numel.items()}
    names = vectors.encoder_names if scope == "encoder" else vectors.names
    here = sum(numel[name] for name in names)
    # The zeros of frozen parameters are the smallest magnitudes of all, so they are dropped first.
    ranked = here + (vectors.frozen if scope == "clip" else 0)
    limits = _limits(vectors, names, max(0, here - int(density * ranked)))
    if density < 1 and not all(limits):
        vectors.say(
            f"strategy.density={density} trims nothing of task vector {limits.index(0.0) + 1}: no more than this share "
            f"of its parameters differs from the base (strategy.scope={scope})"
        )
    return dict.fromkeys(vectors.names, limits)


def _limits(vectors: SurveyedVectors, names: Sequence[str], dropped: int) -> list[float]:
    return [limit for (limit,) in smallest_magnitudes(vectors, names, [dropped])]


def trimmed(taus: Tensor, limits: Sequence[float]) -> Tensor:
    """Set the parameters below their task's limit to zero, in place."""
    for tau, limit in zip(taus, limits, strict=True):
        # hardshrink drops |τ| ≤ λ; with the next smaller float32 as λ it drops |τ| < limit.
        torch.hardshrink(tau, _next_smaller(limit), out=tau)
    return taus


@cache
def _next_smaller(value: float) -> float:
    return float(np.nextafter(np.float32(value), np.float32(-1)))


@strategy(
    scale=0.55,
    survey=survey,
    revisit=revisit,
    propagates_nan=True,
    reference=Reference(
        "TIES-Merging: Resolving Interference When Merging Models", "NeurIPS 2023", "https://arxiv.org/abs/2306.01708"
    ),
)
def ties(taus: Tensor, *, name: str, start: int, thresholds: dict[str, Sequence[float]], ballot: Ballot) -> Tensor:
    """τ_p = mean of those τ_{t,p} that survive trimming and have the sign of their sum. Yadav et al. 2023, Algorithm 1.

    Args:
        taus: the stack [T, n]; overwritten.
        name: the weight.
        start: position of the block in the weight.
        thresholds: for each weight and task, the smallest magnitude that survives.
        ballot: counts the votes for the sign of parameters whose surviving values sum to zero.
    """
    merged, mass, count = elected(trimmed(taus, thresholds[name]), ballot.majority)
    ballot.cast(name, start, mass, count)
    return merged
