"""The merge engine: paths in, a file or a folder out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mergestream import strategies
from mergestream.merging.output import Output, check_out, output, path_of, require_new
from mergestream.merging.provenance import provenance
from mergestream.merging.scratch import Memory, Scratch
from mergestream.merging.tensors import bytes_of, is_finite, is_statistic
from mergestream.merging.vectors import TaskVectors, single_threaded
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_choice, require_number
from mergestream.strategies.adjustments import PLAIN, Adjustments
from mergestream.strategies.calibrations.calibration import BoundCalibration
from mergestream.strategies.strategy import BoundStrategy, Strategy
from mergestream.strategies.task_vectors import CHUNK, Block, Reading, Rows

TILE = 1 << 16  # elements of a stack that fit into the cache of a core
OUTPUT_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
STATISTICS = ("average", "base")
AVERAGE = strategies.get("average").bind({})

Emit = Callable[[Block, Tensor, Tensor], None]  # gets (block, θ₀'s block, the merged task vector's block)


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
    bn: str = "average",
    overwrite: bool = False,
    clip_parameters: int | None = None,
    threads: int | None = None,
    block: int | None = None,
    say: Callable[[str], None] = warnings.warn,
    adjustments: Adjustments = PLAIN,
    **options: Any,
) -> list[str]:
    """Merge checkpoints: write θ₀ + λ · strategy(θ_1 − θ₀, …, θ_T − θ₀) to `out`.

    Computes in float32; the result has the dtypes of θ₀. Files are read, merged and written block by block, so memory
    grows neither with the model nor with T up to 20 (see `TaskVectors`). Neither block size nor threads change a bit of
    the result. Strategies on matrices need more memory: per thread, one weight and its factors (tsv, iso_c, iso_cts,
    opcm, wudi, core_space) or one weight of all tasks (knots, della). With a calibration, the merged task vector waits
    in a file beside `out`; one of matrices (svc) needs one weight and its factors per thread.

    Example:
        merge_checkpoints("base.safetensors", ["a.safetensors", "b.safetensors"], "ties", "m.safetensors", density=0.1)

    Args:
        base: θ₀: a .safetensors or tensors-only .pt file, the index of a sharded checkpoint, or a folder with one.
        checkpoints: θ_1 … θ_T, likewise, in the order of the tasks; or folders with LoRA adapters on the base.
        strategy: a strategy or its name.
        out: the .safetensors file to write, or a folder, which gets the shards and side files of θ₀. It appears whole
            or not at all.
        scale: λ; None is the published one of the calibration, or of the strategy where there is none. Each of several
            λ is written to its own path, `out` with -λ after its stem, in one pass over the inputs.
        dtype: float32, bfloat16 or float16 for all merged weights; None is that of θ₀.
        on_mismatch: ``error``, or ``skip`` to copy from θ₀ the tensors whose name, shape or dtype differs between the
            files.
        bn: running statistics of batch normalisation are the mean of those of the checkpoints (``average``), whatever
            λ is, or those of θ₀ (``base``).
        overwrite: allow an `out` that is the base or a checkpoint.
        device: where to compute.
        clip_parameters: number of parameters of the whole CLIP, for files that hold only its image tower (``ties`` with
            ``scope="clip"``).
        threads: blocks that are merged at a time; None is one for each core.
        block: elements of a block, a multiple of 131,072; None fits the caches.
        say: called with each message about how the files are read that may surprise the user.
        adjustments: which tensors are merged, how much of each task and layer, and a calibration of the result.
        options: options of the strategy. ``scope`` is ``all`` unless it is given.

    Returns:
        The tensors of θ₀ that ``skip`` left as they are.

    Raises:
        UserError: if a file is missing, damaged or does not fit the others, or an argument breaks its rule.
    """
    chosen = strategies.get(strategy) if isinstance(strategy, str) else strategy
    bound = chosen.bind({"scope": "all", **options} if "scope" in chosen.defaults() else options)
    bound = bound.adjusted(adjustments)
    bound.require_chosen()
    targets = _targets(Path(out), bound.scale if scale is None else scale)
    bound.require_scales(list(targets))
    if isinstance(checkpoints, (str, Path)):
        raise UserError(f"checkpoints must be a list of paths; got checkpoints={checkpoints}")
    if not checkpoints:
        raise UserError("checkpoints must list at least one checkpoint to merge; got checkpoints=[]")
    if not overwrite:
        require_new([Path(path) for path in (base, *checkpoints)], targets.values())
    require_choice("bn", bn, STATISTICS)
    require_choice("dtype", dtype, list(OUTPUT_DTYPES), null="that of θ₀")
    opened = TaskVectors(
        Path(base),
        [Path(path) for path in checkpoints],
        clip_parameters,
        on_mismatch=on_mismatch,
        threads=threads,
        block=block,
        device=device,
        say=say,
        adjustments=adjustments,
    )
    with opened as vectors, _outputs(targets, vectors, bound, dtype) as outputs:
        statistics = vectors.statistics if bn == "average" else []
        merge_weights(vectors, bound, partial(_write, outputs, vectors), lambda: _scratch(vectors, Path(out).parent))
        if statistics:
            merge_blocks(vectors, AVERAGE, partial(_write, outputs, vectors), statistics)
        written = {other for name in (*vectors.names, *statistics) for other in vectors.ties.names(name)}
        hashes = vectors.digests()
        for value, writer in outputs.items():
            _copy_unmerged(vectors, writer, written)
            writer.set_metadata(_provenance(bound, value, vectors, hashes))
        return sorted(vectors.skipped & vectors.base.entries.keys())


def merged_task_vector(
    base: str | Path,
    checkpoints: Sequence[str | Path],
    bound: BoundStrategy,
    *,
    clip_parameters: int | None = None,
    device: torch.device | str = "cpu",
    say: Callable[[str], None] = warnings.warn,
) -> tuple[dict[str, Tensor], list[str]]:
    """Return strategy(θ_1 − θ₀, …, θ_T − θ₀), and the content hashes of θ₀ and of every checkpoint.

    Args:
        base, checkpoints, clip_parameters, device, say: see `merge_checkpoints`.
        bound: the strategy, its options, and the adjustments.
    """
    bound.require_chosen()
    paths, adjustments = [Path(path) for path in checkpoints], bound.adjustments
    opened = TaskVectors(Path(base), paths, clip_parameters, device=device, say=say, adjustments=adjustments)
    with opened as vectors:
        merged = [other for name in (*vectors.names, *vectors.statistics) for other in vectors.ties.names(name)]
        result = {name: torch.empty(vectors.base.entries[name].shape) for name in merged}

        def keep(block: Block, _base: Tensor, tau: Tensor) -> None:
            if not is_finite(tau):
                vectors.check()
            for name in vectors.ties.names(block.name):
                result[name].view(-1)[block.start : block.start + block.size] = tau.view(-1).cpu()

        merge_weights(vectors, bound, keep, lambda: Memory(result))
        if vectors.statistics:
            merge_blocks(vectors, AVERAGE, keep, vectors.statistics)
        return result, vectors.digests()


def merge_weights(
    vectors: TaskVectors, bound: BoundStrategy, emit: Emit, scratch: Callable[[], Memory | Scratch]
) -> None:
    """Call `emit` with the merged, calibrated task vector of every block of all weights, from several threads.

    Args:
        vectors: the task vectors.
        bound: the strategy, its options, and the adjustments.
        emit: see `Emit`.
        scratch: where the merged task vector waits for its calibration.
    """
    adjustments = bound.adjustments
    adjustments.require_blocks(vectors.tensors)
    if adjustments.depth is not None:
        emit = _by_depth(emit, adjustments.factors(vectors.tensors))
    if adjustments.calibration is None:
        merge_blocks(vectors, bound, emit)
        return
    with scratch() as merged:

        def keep(block: Block, _base: Tensor, tau: Tensor) -> None:
            if not is_finite(tau):
                vectors.check()  # reports the input, if the value comes from one
                raise UserError(f"a calibration needs finite values; those of {block.name} add up to infinite ones")
            merged.write(block, tau)

        merge_blocks(vectors, bound, keep)
        _calibrate(vectors, adjustments.calibration, merged, emit)


def _by_depth(emit: Emit, factors: Mapping[str, float]) -> Emit:
    """Return an `emit` that multiplies the merged task vector of each weight by its factor first."""
    return lambda block, base, tau: emit(block, base, tau * factors[block.name])


def _calibrate(vectors: TaskVectors, bound: BoundCalibration, merged: Memory | Scratch, emit: Emit) -> None:
    """Call `emit` with the calibrated task vector of every block of all weights."""
    calibration, names = bound.calibration, vectors.names
    with single_threaded():  # another number of threads changes the bits
        arguments = calibration.survey(merged, vectors, **bound.options) if calibration.survey else bound.options

    def calibrate(block: Block, base: Tensor, taus: Rows) -> None:
        tau = merged.read(block).to(base.device)
        emit(block, base, calibration(tau, taus, **arguments, **calibration.place(block)).contiguous())

    matrices = [block for block in vectors.blocks(names, whole=True) if calibration.matrices and len(block.shape) == 2]
    whole = {block.name for block in matrices}
    vectors.map_rows(calibrate, matrices)
    vectors.map_rows(calibrate, vectors.blocks([name for name in names if name not in whole], streamed=True))


def _scratch(vectors: TaskVectors, folder: Path) -> Scratch:
    return Scratch({name: vectors.numel(name) for name in vectors.names}, folder)


def merge_blocks(vectors: TaskVectors, bound: BoundStrategy, emit: Emit, names: Sequence[str] | None = None) -> None:
    """Call `emit` with the merged task vector of every block of `names`, or of all weights, from several threads."""
    strategy = bound.strategy
    arguments = strategy.survey(vectors, **bound.options) if strategy.survey else bound.options

    def apply(block: Block, taus: Tensor | Rows) -> Tensor:
        return strategy(taus, **arguments, **strategy.place(block)).contiguous()

    def merge(block: Block, base: Tensor, taus: Tensor | Rows) -> None:
        emit(block, base, apply(block, taus))

    def merge_tiles(block: Block, base: Tensor, taus: Tensor) -> None:
        for start in range(0, block.size, TILE):
            size = min(TILE, block.size - start)
            tile = Block(block.name, block.start + start, size, (size,))
            merge(tile, base[start : start + size], taus[:, start : start + size])

    reading = Reading(hashing=True, finite=not strategy.propagates_nan)
    blocks = vectors.blocks(vectors.names if names is None else names, streamed=strategy.streams, whole=strategy.whole)
    if strategy.streams:
        vectors.map_rows(merge, blocks, reading)
    else:
        vectors.map(merge if strategy.whole else merge_tiles, blocks, reading)
    if strategy.revisit:
        _merge_again(vectors, strategy.revisit(**arguments), apply, emit)


def _merge_again(
    vectors: TaskVectors,
    places: Mapping[tuple[str, int], Tensor | None],
    apply: Callable[[Block, Tensor], Tensor],
    emit: Emit,
) -> None:
    """Merge the tiles and elements that `Strategy.revisit` returned; `apply` calls the strategy."""
    tiles: list[Block] = []
    elements: dict[Block, Tensor] = {}
    for (name, start), positions in places.items():
        size = min(TILE, vectors.numel(name) - start)
        tile = Block(name, start, size, (size,))
        if positions is None:
            tiles.append(tile)
        else:
            elements[tile] = positions

    def merge_tile(tile: Block, base: Tensor, taus: Tensor) -> None:
        emit(tile, base, apply(tile, taus))

    def merge_elements(tile: Block, base: Tensor, taus: Rows) -> None:
        tau = apply(tile, taus.at(elements[tile]))
        for i, position in enumerate(elements[tile].tolist()):
            element = Block(tile.name, tile.start + position, 1, (1,))
            emit(element, base[position : position + 1], tau[i : i + 1])

    vectors.map(merge_tile, tiles)
    vectors.map_rows(merge_elements, list(elements))


def _targets(out: Path, scale: float | Sequence[float]) -> dict[float, Path]:
    """Check the values of λ and their paths; return the path of each λ."""
    several = isinstance(scale, Sequence) and not isinstance(scale, str)
    scales: list[float] = list(scale) if several else [scale]  # type: ignore[arg-type, list-item]
    for value in scales:
        require_number("lambda", value, "finite")
    if not scales or len(set(scales)) < len(scales):
        raise UserError(f"lambda must be a number or a list of different numbers; got lambda={scales}")
    targets = {value: path_of(out, value) if several else out for value in scales}
    for path in targets.values():
        check_out(path)
    return targets


@contextmanager
def _outputs(
    targets: Mapping[float, Path], vectors: TaskVectors, bound: BoundStrategy, dtype: str | None
) -> Iterator[dict[float, Output]]:
    """Yield the output of each λ. Their files appear when the block succeeds."""
    merged = {other for name in vectors.names for other in vectors.ties.names(name)}
    entries = {
        name: replace(entry, dtype=OUTPUT_DTYPES[dtype]) if dtype and name in merged else entry
        for name, entry in vectors.base.entries.items()
    }
    unknown = ["0" * 32] * (1 + len(vectors))  # as long as the hashes
    with ExitStack() as stack:
        yield {
            value: stack.enter_context(
                output(path, vectors.base, entries, _provenance(bound, value, vectors, unknown), vectors.say)
            )
            for value, path in targets.items()
        }


def _write(outputs: Mapping[float, Output], vectors: TaskVectors, block: Block, base: Tensor, tau: Tensor) -> None:
    """Write θ₀ + λ · τ of a block, for each λ."""
    for scale, writer in outputs.items():
        factor = 1.0 if is_statistic(block.name) else scale  # a variance beyond those of the tasks may be negative
        theta = (factor * tau).add_(base)  # rounds twice, as the published codes do; a fused alpha= rounds once
        flat = theta.view(-1).to("cpu", writer.entries[block.name].dtype)
        if _is_saturated(theta, flat.dtype) or not (is_finite(flat) or _has_infinities_of(base, flat, tau)):
            vectors.check()  # reports the input, if the value comes from one
            raise UserError(
                f"{block.name} has values that {flat.dtype} cannot hold, with lambda={scale:g}; "
                "write a smaller lambda, or dtype=float32"
            )
        for name in vectors.ties.names(block.name):
            writer.write(name, block.start, flat)


def _is_saturated(theta: Tensor, dtype: torch.dtype) -> bool:
    """Return whether values are too large for an 8-bit type. torch makes them the largest one, rather than infinite."""
    if dtype.itemsize > 1:
        return False
    limits = torch.finfo(dtype)
    return bool((theta.isfinite() & (theta.abs() > limits.max * (1 + limits.eps / 4))).any())


def _has_infinities_of(base: Tensor, theta: Tensor, tau: Tensor) -> bool:
    """Return whether θ is infinite just where θ₀ is, and nowhere NaN."""
    found, given = theta.float(), base.view(-1).cpu()
    return is_finite(tau) and bool((~found.isnan() & (found.isinf() == given.isinf())).all())


def _copy_unmerged(vectors: TaskVectors, writer: Output, written: Set[str]) -> None:
    """Copy the tensors of θ₀ that are not merged: integers, those that were skipped, and statistics of the base."""
    for name in vectors.base.entries.keys() - written:
        entry = vectors.base.entries[name]
        for start in range(0, entry.numel, CHUNK):
            values = torch.empty(min(CHUNK, entry.numel - start), dtype=entry.dtype)
            vectors.base.read(name, start, bytes_of(values))
            writer.write(name, start, values)


def _provenance(bound: BoundStrategy, scale: float, vectors: TaskVectors, hashes: Sequence[str]) -> dict[str, str]:
    files = (vectors.base, *vectors.checkpoints)
    inputs = [{"file": file.path.name, "xxh3": digest} for file, digest in zip(files, hashes, strict=True)]
    return provenance(bound, inputs, scale=scale, skipped=sorted(vectors.skipped))
