"""One merged image tower of a run: θ₀ + λ · τ, its file, and its description."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mergestream import __version__
from mergestream.runtime import files
from mergestream.strategies.strategy import BoundStrategy


def apply(base: Mapping[str, Tensor], tau: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return θ₀ + λ · τ, with the same bits as `merge_checkpoints`."""
    return {name: (scale * tau[name]).add_(theta.float()).to(theta.dtype) for name, theta in base.items()}


def write_merged(
    path: Path, theta: Mapping[str, Tensor], bound: BoundStrategy, scale: float, inputs: Sequence[str]
) -> None:
    """Write a merged encoder, with a record of what it was made from."""
    metadata = {
        "format": "pt",
        "strategy": bound.strategy.name,
        "scale": repr(scale),
        "options": json.dumps(bound.options, sort_keys=True),
        "version": __version__,
        "inputs": json.dumps(list(inputs)),
    }
    files.write_tensors(path, theta, metadata)


def describe(bound: BoundStrategy, scale: float, tried: Mapping[float, float]) -> dict[str, Any]:
    """Return how a merge was made, for its metrics.json; `tried` are validation accuracies by λ."""
    result: dict[str, Any] = {"strategy": bound.strategy.name, "scale": scale, "options": bound.options}
    result["changed"] = bound.changed
    if tried:
        result["selected_on"] = "validation"
        result["validation"] = [{"lambda": value, "accuracy": accuracy} for value, accuracy in tried.items()]
    return result
