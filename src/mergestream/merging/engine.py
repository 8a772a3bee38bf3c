"""Merge checkpoints: paths in, a file out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mergestream import __version__, files, strategies
from mergestream.checks import check_scale
from mergestream.errors import UserError
from mergestream.merging.vectors import TaskVectors
from mergestream.strategies.strategy import Strategy


def merge_checkpoints(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    strategy: str | Strategy,
    out: str | Path,
    *,
    scale: float | None = None,
    clip_parameters: int | None = None,
    **options: Any,
) -> None:
    """Write θ₀ + λ · strategy(θ_1 − θ₀, …, θ_T − θ₀) to `out`, in the dtypes of θ₀.

    Example:
        merge_checkpoints("base.safetensors", ["a.safetensors", "b.safetensors"], "ties", "m.safetensors", density=0.1)

    Args:
        base: θ₀, a .safetensors or tensors-only .pt file.
        checkpoints: θ_1 … θ_T, in the order of the tasks.
        strategy: a strategy or its name.
        out: the .safetensors file to write; appears whole or not at all.
        scale: λ; None is the strategy's published one.
        clip_parameters: parameters of the whole CLIP, for files with its image tower only (``ties`` with scope clip).
        options: of the strategy.

    Raises:
        UserError: if a file is missing, damaged or does not fit the others, or an option is out of range.
    """
    chosen = strategies.get(strategy) if isinstance(strategy, str) else strategy
    check_scale(scale)
    factor = chosen.scale if scale is None else float(scale)
    options = chosen.check(options)
    if not checkpoints:
        raise UserError("a merge needs at least one checkpoint; got checkpoints=[]")
    if Path(out).suffix != ".safetensors" or Path(out).is_dir():
        raise UserError(f"out must be a file that ends in .safetensors; got out={out}")
    vectors = TaskVectors(Path(base), [Path(path) for path in checkpoints], clip_parameters)
    arguments = chosen.survey(vectors, **options) if chosen.survey else options
    merged = dict(vectors.base)
    for name in vectors.names:
        told = {**arguments, "name": name} if chosen.wants_name else arguments
        tau = chosen(vectors.taus(name), **told)
        merged[name] = (vectors.base[name].float() + factor * tau).to(vectors.base[name].dtype)
    metadata = {
        "strategy": chosen.name,
        "scale": repr(factor),
        "options": json.dumps(options, sort_keys=True),
        "inputs": json.dumps([Path(path).name for path in (base, *checkpoints)]),
        "version": __version__,
    }
    files.write_tensors(Path(out), merged, metadata)
