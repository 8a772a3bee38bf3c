"""A merged image tower of a run: θ₀ + λ · τ, its file, and its description."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from mergestream.merging.adapters import Adapter
from mergestream.merging.checkpoints import Checkpoint
from mergestream.merging.provenance import provenance
from mergestream.merging.tensors import is_statistic
from mergestream.merging.tied_weights import Ties
from mergestream.runs.directory import ADAPTER
from mergestream.runtime import files
from mergestream.strategies.strategy import BoundStrategy


def read_encoder(path: Path, base: Path) -> dict[str, Tensor]:
    """Return the weights of an encoder from its file, or from that of its adapter: θ₀ + (α/r) · B A, float32.

    Args:
        path: the file.
        base: the file of θ₀.
    """
    if path.name != ADAPTER:
        return files.read_tensors(path)
    theta = files.read_tensors(base)
    opened = Checkpoint(base)
    try:
        adapter = Adapter(path.parent, opened, Ties(), warnings.warn)
        for name in adapter.updates:
            tau = torch.empty(theta[name].numel())
            flat = theta[name].float().flatten()
            adapter.task_vector(name, 0, flat, tau)
            theta[name] = (flat + tau).view(theta[name].shape)
    finally:
        opened.close()
    return theta


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
