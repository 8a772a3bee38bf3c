"""Merge checkpoints: paths in, a file out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergestream import __version__, files, strategies
from mergestream.checks import check_scale
from mergestream.errors import UserError
from mergestream.merging.tensors import TensorWriter
from mergestream.merging.vectors import Block, TaskVectors
from mergestream.strategies.strategy import Strategy


def merge_checkpoints(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    strategy: str | Strategy,
    out: str | Path,
    *,
    scale: float | None = None,
    clip_parameters: int | None = None,
    threads: int | None = None,
    block: int | None = None,
    **options: Any,
) -> None:
    """Write θ₀ + λ · strategy(θ_1 − θ₀, …, θ_T − θ₀) to `out`, computed in float32, in the dtypes of θ₀.

    The files are read, merged and written block by block: memory depends neither on T nor on the model, and neither
    the size of a block nor the number of threads changes a bit of the result.

    Example:
        merge_checkpoints("base.safetensors", ["a.safetensors", "b.safetensors"], "ties", "m.safetensors", density=0.1)

    Args:
        base: θ₀, a .safetensors or tensors-only .pt file.
        checkpoints: θ_1 … θ_T, in the order of the tasks.
        strategy: a strategy or its name.
        out: the .safetensors file to write; appears whole or not at all.
        scale: λ; None is the strategy's published one.
        clip_parameters: parameters of the whole CLIP, for files with its image tower only (``ties`` with scope clip).
        threads: blocks at a time; None is one for each core.
        block: elements of a block; None is chosen for the caches.
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
    with TaskVectors(Path(base), [Path(path) for path in checkpoints], clip_parameters, threads, block) as vectors:
        arguments = chosen.survey(vectors, **options) if chosen.survey else options
        entries = vectors.base.entries
        metadata = {
            "strategy": chosen.name,
            "scale": repr(factor),
            "options": json.dumps(options, sort_keys=True),
            "version": __version__,
            "inputs": _inputs(vectors, ["0" * 32] * len(vectors.files)),
        }
        with files.whole(Path(out)) as partial, TensorWriter(partial, entries, metadata) as writer:

            def work(block: Block, theta: Tensor, taus: Tensor) -> None:
                where = {key: getattr(block, key) for key in chosen.wanted if key in Block._fields}
                tau = chosen(taus, **arguments, **where)
                theta.add_(factor * tau)  # rounded twice, as published; a fused alpha= rounds once
                writer.write(block.name, block.start, theta.to(entries[block.name].dtype).contiguous())

            vectors.map(work, vectors.blocks(vectors.names), hashing=True)
            for name in entries.keys() - set(vectors.names):  # integers: θ₀'s, as they are
                values = torch.empty(entries[name].numel, dtype=entries[name].dtype)
                vectors.base.read(name, 0, values)
                writer.write(name, 0, values)
            writer.metadata["inputs"] = _inputs(vectors, vectors.digests())


def _inputs(vectors: TaskVectors, digests: Sequence[str]) -> str:
    """Name and content hash of every file, θ₀ first."""
    pairs = zip(vectors.files, digests, strict=True)
    return json.dumps([{"file": file.path.name, "xxh3": digest} for file, digest in pairs])
