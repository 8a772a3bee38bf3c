"""A merged image tower of a run: θ₀ + λ · τ, its file, and its description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from mergestream.merging.provenance import provenance
from mergestream.merging.tensors import is_statistic
from mergestream.runtime import files
from mergestream.strategies.strategy import BoundStrategy


def apply(base: Mapping[str, Tensor], tau: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Return θ₀ + λ · τ, with the same bits as `merge_checkpoints`; λ is 1 for statistics, and integers stay."""
    return {
        name: ((1.0 if is_statistic(name) else scale) * tau[name]).add_(theta.float()).to(theta.dtype)
        if name in tau
        else theta
        for name, theta in base.items()
    }


def write_merged(
    path: Path,
    theta: Mapping[str, Tensor],
    bound: BoundStrategy,
    scale: float,
    inputs: Sequence[str],
    others: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write a merged encoder.

    Args:
        path: the file.
        theta: its weights.
        bound: the strategy and its options.
        scale: λ.
        inputs: content hashes of θ₀ and of each encoder that was merged.
        others: changed settings of the merge that are not options of the strategy.
    """
    files.write_tensors(path, theta, provenance(bound, inputs, scale=scale, others=others))


def describe(
    bound: BoundStrategy,
    scale: float,
    tried: Mapping[float, float] = MappingProxyType({}),
    others: Mapping[str, str] = MappingProxyType({}),
    selected: str = "lambda",
) -> dict[str, Any]:
    """Return the part of a merge's metrics.json that says how it was made.

    Args:
        bound: the strategy and its options.
        scale: λ.
        tried: validation accuracy of each value that was tried, in order; empty if none was selected.
        others: changed settings of the merge that are not options of the strategy.
        selected: the config key of the values that were tried.
    """
    result: dict[str, Any] = {"strategy": bound.strategy.name, "scale": scale, "options": bound.options}
    result["changed"] = {**bound.changed, **others}
    if bound.adjustments.calibration is not None:
        result["calibration"] = bound.adjustments.calibration.record
    if tried:
        (result if selected == "lambda" else result["calibration"])["selected_on"] = "validation"
        result["validation"] = [{selected: value, "accuracy": accuracy} for value, accuracy in tried.items()]
    return result
