"""Merge checkpoints: paths in, a file or a folder out."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergestream import __version__, strategies
from mergestream.merging.output import Output, check_out, output
from mergestream.merging.tensors import bytes_of
from mergestream.merging.vectors import CHUNK, Block, Rows, TaskVectors
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_number
from mergestream.strategies.strategy import Strategy

TILE = 1 << 16  # elements of a block that a strategy sees at once, unless it takes rows or whole weights
OUTPUT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def merge_checkpoints(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    strategy: str | Strategy,
    out: str | Path,
    *,
    scale: float | Sequence[float] | None = None,
    dtype: str | None = None,
    on_mismatch: str = "error",
    device: torch.device | str = "cpu",
    clip_parameters: int | None = None,
    threads: int | None = None,
    block: int | None = None,
    **options: Any,
) -> list[str]:
    """Write θ₀ + λ · strategy(θ_1 − θ₀, …, θ_T − θ₀) to `out`, computed in float32, in the dtypes of θ₀.

    The files are read, merged and written block by block: memory does not grow with the model, nor with T up to 20
    (see `TaskVectors`), and neither the size of a block nor the number of threads changes a bit of the result. A
    strategy on matrices holds, for each thread, one weight and its factors (tsv, iso_c, iso_cts, opcm, wudi) or one
    weight of all tasks (knots, della).

    Example:
        merge_checkpoints("base.safetensors", ["a.safetensors", "b.safetensors"], "ties", "m.safetensors", density=0.1)

    Args:
        base: θ₀: a .safetensors or tensors-only .pt file, the index of a sharded checkpoint, or a folder with one.
        checkpoints: θ_1 … θ_T, in the order of the tasks, likewise; or folders with LoRA adapters on the base.
        strategy: a strategy or its name.
        out: the .safetensors file to write, or a folder, which gets the shards and side files of θ₀; appears whole or
            not at all.
        scale: λ; None is the strategy's published one. Several are written in one pass, each to a path of its own:
            `out` with -λ after its stem.
        dtype: float32, bfloat16 or float16 for all merged weights; None is that of θ₀.
        on_mismatch: ``error``, or ``skip`` to copy from θ₀ what does not agree in name, shape or dtype in all files.
        device: where to compute.
        clip_parameters: parameters of the whole CLIP, for files with its image tower only (``ties`` with scope clip).
        threads: blocks at a time; None is one for each core.
        block: elements of a block, a multiple of 131,072; None is chosen for the caches.
        options: of the strategy.

    Returns:
        The tensors of θ₀ that ``skip`` left as they are.

    Raises:
        UserError: if a file is missing, damaged or does not fit the others, or an option is out of range.
    """
    chosen = strategies.get(strategy) if isinstance(strategy, str) else strategy
    several = isinstance(scale, Sequence) and not isinstance(scale, str)
    scales: list[Any] = [chosen.scale] if scale is None else [*scale] if several else [scale]  # type: ignore[misc]
    for value in scales:
        require_number("lambda", value, "finite")
    if not scales or len(set(scales)) < len(scales):
        raise UserError(f"lambda must be different numbers; got lambda={scales}")
    options = chosen.check(options)
    if isinstance(checkpoints, (str, Path)):
        raise UserError(f"checkpoints must be a list of paths; got checkpoints={checkpoints}")
    if not checkpoints:
        raise UserError("a merge needs at least one checkpoint; got checkpoints=[]")
    if dtype is not None and dtype not in OUTPUT_DTYPES:
        raise UserError(f"dtype must be one of {', '.join(OUTPUT_DTYPES)}, or null for θ₀'s; got dtype={dtype}")
    if block is not None and (block < CHUNK or block % CHUNK):
        raise UserError(f"block must be a multiple of {CHUNK} elements; got block={block}")
    outs = [path_of(Path(out), value) if several else Path(out) for value in scales]
    for path in outs:
        check_out(path)
    paths = [Path(path) for path in checkpoints]
    with (
        TaskVectors(
            Path(base), paths, clip_parameters, on_mismatch=on_mismatch, threads=threads, block=block, device=device
        ) as vectors,
        ExitStack() as stack,
    ):
        merged = set(vectors.names)
        entries = {
            name: replace(entry, dtype=OUTPUT_DTYPES[dtype]) if dtype and name in merged else entry
            for name, entry in vectors.base.entries.items()
        }
        records = [record(chosen, value, options, vectors) for value in scales]
        writers = [
            stack.enter_context(output(path, vectors.base, entries, known))
            for path, known in zip(outs, records, strict=True)
        ]

        def emit(block: Block, base: Tensor, tau: Tensor) -> None:
            for value, writer in zip(scales, writers, strict=True):
                theta = (value * tau).add_(base)  # rounded twice, as published; a fused alpha= rounds once
                flat = theta.view(-1).to("cpu", entries[block.name].dtype)
                if not math.isfinite(flat.sum().item()) and not bool(flat.isfinite().all()):
                    vectors.check()  # names the file, if it is one
                    raise UserError(
                        f"{block.name} has values that {flat.dtype} cannot hold, with lambda={value:g}; "
                        "write a smaller lambda, or dtype=float32"
                    )
                writer.write(block.name, block.start, flat)

        each_block(vectors, chosen, options, emit)
        for writer in writers:
            _copy_the_rest(vectors, writer)
        for value, writer in zip(scales, writers, strict=True):
            writer.set_metadata(record(chosen, value, options, vectors, vectors.digests()))
    return sorted(vectors.skipped & vectors.base.entries.keys())


def merged_task_vector(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    strategy: Strategy,
    options: Mapping[str, Any],
    *,
    clip_parameters: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Tensor], list[str]]:
    """strategy(θ_1 − θ₀, …, θ_T − θ₀) in memory, and the content hashes of θ₀ and of every checkpoint.

    Args:
        base, checkpoints, clip_parameters, device: see `merge_checkpoints`.
        strategy: the strategy.
        options: all of its options.
    """
    with TaskVectors(Path(base), [Path(p) for p in checkpoints], clip_parameters, device=device) as vectors:
        result = {name: torch.empty(vectors.base.entries[name].shape) for name in vectors.names}

        def emit(block: Block, _: Tensor, tau: Tensor) -> None:
            if not math.isfinite(tau.sum().item()) and not bool(tau.isfinite().all()):
                vectors.check()
            result[block.name].view(-1)[block.start : block.start + block.size] = tau.view(-1).cpu()

        each_block(vectors, strategy, options, emit)
        return result, vectors.digests()


def each_block(
    vectors: TaskVectors,
    strategy: Strategy,
    options: Mapping[str, Any],
    emit: Callable[[Block, Tensor, Tensor], None],
) -> None:
    """Call ``emit(block, base, tau)`` with the merged task vector of every block."""
    arguments = strategy.survey(vectors, **options) if strategy.survey else options

    def merge(block: Block, base: Tensor, taus: Any) -> None:
        where = {key: getattr(block, key) for key in strategy.wanted}
        emit(block, base, strategy(taus, **arguments, **where).contiguous())

    def work(block: Block, base: Tensor, taus: Any) -> None:
        if strategy.rows or strategy.whole:
            merge(block, base, taus)
            return
        for start in range(
            0, block.size, TILE
        ):  # a stack of tasks is too large for a core's cache, a tile of it is not
            size = min(TILE, block.size - start)
            tile = Block(block.name, block.start + start, size, (size,))
            merge(tile, base[start : start + size], taus[:, start : start + size])

    blocks = vectors.blocks(vectors.names, rows=strategy.rows, whole=strategy.whole)
    check = not strategy.carries  # then `emit` finds it
    vectors.map(work, blocks, rows=strategy.rows, device=vectors.device, hashing=True, check=check)
    places = strategy.again(**arguments) if strategy.again else {}

    def work_again(tile: Block, base: Tensor, taus: Rows) -> None:
        at = places[tile.name, tile.start]
        if at is None:
            merge(tile, base, taus.stack())
            return
        where = {key: getattr(tile, key) for key in strategy.wanted}
        tau = strategy(taus[:, at], **arguments, **where)
        for i, position in enumerate(at.tolist()):
            element = Block(tile.name, tile.start + position, 1, (1,))
            emit(element, base[position : position + 1], tau[i : i + 1])

    tiles = []
    for name, start in places:
        size = min(TILE, vectors.base.entries[name].numel - start)
        tiles.append(Block(name, start, size, (size,)))
    vectors.map(work_again, tiles, rows=True, device=vectors.device)


def record(
    strategy: Strategy,
    scale: float,
    options: Mapping[str, Any],
    vectors: TaskVectors,
    digests: Sequence[str] | None = None,
) -> dict[str, str]:
    """Metadata of a merged file; without `digests`, of the same length as with them."""
    files = [vectors.base, *vectors.checkpoints]
    hashes = digests or ["0" * 32] * len(files)
    return {
        "format": "pt",  # transformers asks for it
        "strategy": strategy.name,
        "scale": repr(float(scale)),
        "options": json.dumps(dict(options), sort_keys=True),
        "skipped": json.dumps(sorted(vectors.skipped)),
        "version": __version__,
        "inputs": json.dumps([{"file": f.path.name, "xxh3": h} for f, h in zip(files, hashes, strict=True)]),
    }


def path_of(out: Path, scale: float) -> Path:
    """The path of one of several scales."""
    suffix = out.suffix if out.suffix == ".safetensors" else ""
    return out.with_name(f"{out.name.removesuffix(suffix)}-{scale:.12g}{suffix}")


def _copy_the_rest(vectors: TaskVectors, writer: Output) -> None:
    """Integers, and what was skipped: θ₀'s, as they are."""
    for name in vectors.base.entries.keys() - set(vectors.names):
        entry = vectors.base.entries[name]
        for start in range(0, entry.numel, CHUNK):
            values = torch.empty(min(CHUNK, entry.numel - start), dtype=entry.dtype)
            vectors.base.read(name, start, bytes_of(values))
            writer.write(name, start, values)
