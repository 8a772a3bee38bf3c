"""Task vectors, read block by block from the files they lie in."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import xxhash
from torch import Tensor

from mergestream.merging.checkpoints import Adapter, Checkpoint, open_checkpoint
from mergestream.merging.tensors import bytes_of
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.processes import cores
from mergestream.strategies._folds import extremes

VISUAL = ("visual.", "vision_model.", "visual_projection.")  # a whole CLIP's image tower: open_clip, transformers
CHUNK = 1 << 17  # elements that are hashed at once; every block but a tensor's last is a multiple
ROWS = 4 * CHUNK  # elements of a block whose task vectors are read one after the other: 2 MB each, few hand-overs
STACK = 20 * CHUNK  # elements of all task vectors of a block that are held together: 10 MB
WINDOW = 512  # blocks that are queued at a time
SINGLE = 64  # positions of a block that are read one by one rather than with all others
MISMATCH = ("error", "skip")

Result = TypeVar("Result")


class Block(NamedTuple):
    """A piece of one weight: `size` elements from `start` on, as a tensor of `shape`."""

    name: str
    start: int
    size: int
    shape: tuple[int, ...]


class TaskVectors:
    """τ_t = θ_t − θ₀ of T checkpoints, in float32, a block at a time.

    Memory depends on neither T nor the model, but for stacks of more than 20 tasks: 0.5 MB of each, for each thread.

    Args:
        base: θ₀: a file, an index of shards, or a folder.
        checkpoints: θ_1 … θ_T, likewise; or folders with LoRA adapters on the base.
        clip_parameters: number of parameters of the whole CLIP where the files hold its image tower only.
        on_mismatch: ``error``, or ``skip`` to leave tensors out that do not agree in name, shape or dtype everywhere.
        threads: blocks at a time.
        block: elements of a block, a multiple of `CHUNK`; None is chosen for the caches.
        device: where blocks are given to functions.

    Raises:
        UserError: if a file is missing or damaged, does not fit the others, or was trained from another base.
    """

    def __init__(
        self,
        base: Path,
        checkpoints: Sequence[Path],
        clip_parameters: int | None = None,
        *,
        on_mismatch: str = "error",
        threads: int | None = None,
        block: int | None = None,
        device: torch.device | str = "cpu",
    ):
        if on_mismatch not in MISMATCH:
            raise UserError(f"on_mismatch must be one of {', '.join(MISMATCH)}; got on_mismatch={on_mismatch}")
        self._pool: ThreadPoolExecutor | None = None  # one for all passes: buffers live as long as their threads
        self.base = Checkpoint(base)
        self.checkpoints: list[Checkpoint | Adapter] = []
        self.skipped: set[str] = set()  # names that are not merged, because of on_mismatch=skip
        try:
            for path in checkpoints:
                self.checkpoints.append(open_checkpoint(path, self.base))
                self._require_same_base(self.checkpoints[-1])
                reasons = _differences(self.base, self.checkpoints[-1])
                if reasons and on_mismatch == "error":
                    raise UserError(
                        f"{next(iter(reasons.values()))}. Write on_mismatch=skip to leave such tensors out."
                    )
                self.skipped |= reasons.keys()
            if double := [n for n in self.names if self.base.entries[n].dtype == torch.float64]:
                raise UserError(f"a merge computes in float32, and {double[0]} in {base} is float64; convert it first")
            if not self.names:
                raise UserError(f"a merge needs weights; {base} has no floating-point tensor that all files share")
        except BaseException:
            self.close()
            raise
        here = sum(entry.numel for entry in self.base.entries.values())
        self.frozen = max(0, (clip_parameters or here) - here)
        if threads is not None and threads < 1:
            raise UserError(f"threads must be 1 or more, or null for one on each core; got threads={threads}")
        self.threads = threads or cores()
        self.block = block
        self.device = torch.device(device)
        self.hashes: list[dict[tuple[str, int], bytes]] = [{} for _ in (base, *checkpoints)]
        self._buffers = threading.local()

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __enter__(self) -> TaskVectors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._end_pool()
        for checkpoint in (self.base, *self.checkpoints):
            checkpoint.close()

    @cached_property
    def names(self) -> list[str]:
        """Weights that are merged; integer buffers are not."""
        entries = self.base.entries.items()
        return [name for name, entry in entries if entry.dtype.is_floating_point and name not in self.skipped]

    @property
    def encoder_names(self) -> list[str]:
        """Those of the image tower; all of them where the files hold nothing else."""
        return [name for name in self.names if name.startswith(VISUAL)] or self.names

    def blocks(self, names: Sequence[str], *, rows: bool = False, whole: bool = False) -> list[Block]:
        """The pieces of `names`, in order; with `whole`, a weight is one piece."""
        fitting = ROWS if rows else max(CHUNK, STACK // max(1, len(self)) // CHUNK * CHUNK)
        pieces = []
        for name in names:
            entry = self.base.entries[name]
            if whole:
                pieces.append(Block(name, 0, entry.numel, entry.shape))
                continue
            for start in range(0, entry.numel, self.block or fitting):
                size = min(self.block or fitting, entry.numel - start)
                pieces.append(Block(name, start, size, (size,)))
        return pieces

    def map(
        self,
        function: Callable[[Block, Tensor, Any], Result],
        blocks: Sequence[Block],
        *,
        rows: bool = False,
        tasks: Sequence[int] | None = None,
        device: torch.device | str = "cpu",
        hashing: bool = False,
        check: bool = False,
    ) -> list[Result]:
        """``function(block, base, taus)`` of every block, in order, several at a time.

        Args:
            function: gets θ₀'s block and the task vectors': the stack [T, *shape], or `Rows`. All of them are buffers
                that the next block overwrites; `function` may change them.
            blocks: see `blocks`.
            rows: whether taus are `Rows`.
            tasks: only these task vectors.
            device: of the tensors.
            hashing: remember the content of what is read, for `digests`.
            check: whether every value must be finite.

        Raises:
            UserError: if `check` finds a value that is NaN or infinite.
        """
        chosen = range(len(self)) if tasks is None else tasks

        def work(block: Block) -> Result:
            base, taus = self._rows(block, chosen, device, hashing, check)
            return function(block, base.view(block.shape).to(device), taus if rows else taus.stack())

        inner = torch.get_num_threads()
        torch.set_num_threads(1)  # the threads are ours: a block is too small to share one
        self._pool = self._pool or ThreadPoolExecutor(self.threads)
        try:
            results: list[Result] = []
            for first in range(0, len(blocks), WINDOW):  # a large model has too many blocks to queue them all
                results += self._pool.map(work, blocks[first : first + WINDOW])
            return results
        except BaseException:
            self._end_pool()  # the other blocks are not worth finishing
            raise
        finally:
            torch.set_num_threads(inner)

    def check(self) -> None:
        """Read everything once, in this thread: a block that finds a wrong value may ask which file it comes from.

        Raises:
            UserError: if a value is NaN or infinite.
        """
        for block in self.blocks(self.names, rows=True):
            for _ in self._rows(block, range(len(self)), "cpu", hashing=False, check=True)[1]:
                pass

    def digests(self) -> list[str]:
        """Hash of each input, θ₀ first: xxh3 over the chunks of its merged weights that `map` has read."""
        chunks = [xxhash.xxh3_128_hexdigest(b"".join(h[at] for at in sorted(h))) for h in self.hashes]
        adapters = [c.digest if isinstance(c, Adapter) else None for c in (self.base, *self.checkpoints)]
        return [adapter or digest for adapter, digest in zip(adapters, chunks, strict=True)]

    def task_vector(
        self, task: int, block: Block, base: Tensor, out: Tensor, content: memoryview, hashing: bool, check: bool
    ) -> None:
        """Fill `out`, float32 [n] on the CPU with memory `content`, with τ of `task`; `base` is θ₀'s block."""
        checkpoint = self.checkpoints[task]
        if isinstance(checkpoint, Adapter):
            checkpoint.task_vector(block.name, block.start, base, out, CHUNK)
        else:
            self._read(checkpoint, self.hashes[task + 1], block, out, content, hashing, check)
            out.sub_(base)

    def _rows(
        self, block: Block, tasks: Sequence[int], device: torch.device | str, hashing: bool, check: bool
    ) -> tuple[Tensor, Rows]:
        """θ₀'s block, float32 [n] in a buffer, and the task vectors'."""
        base = self._buffer("base", block.size)
        self._read(self.base, self.hashes[0], block, base, bytes_of(base), hashing, check)
        return base, Rows(self, block, base, tasks, torch.device(device), hashing, check)

    def _end_pool(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _read(
        self,
        file: Checkpoint,
        hashes: dict[tuple[str, int], bytes],
        block: Block,
        out: Tensor,
        content: memoryview,
        hashing: bool,
        check: bool,
    ) -> None:
        """Fill `out`, float32 [n] with memory `content`, with the block of a file; `check` that it is finite."""
        name, start, size, _ = block
        dtype = file.entries[name].dtype
        if dtype != torch.float32:
            raw = self._buffer("raw", size, dtype)
            content = bytes_of(raw)
        file.read(name, start, content)
        if hashing:
            step = CHUNK * dtype.itemsize
            for first in range(0, len(content), step):
                digest = xxhash.xxh3_128_digest(content[first : first + step])
                hashes[name, start + first // dtype.itemsize] = digest
        if dtype != torch.float32:
            out.copy_(raw)
        # A sum is finite only if all terms are; it may also overflow, so the terms have the last word.
        if check and not math.isfinite(out.sum().item()) and not bool(out.isfinite().all()):
            raise UserError(f"checkpoints must be finite; {name} in {file.path} has NaN or infinite values")

    def _buffer(self, purpose: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A piece of memory of this thread, the same one for every block: fresh memory costs more than the work."""
        buffers: dict[Any, Tensor] = self._buffers.__dict__
        kept = buffers.get((purpose, dtype))
        if kept is None or len(kept) < size:
            buffers[purpose, dtype] = kept = torch.empty(size, dtype=dtype)
        return kept[:size]

    def _require_same_base(self, checkpoint: Checkpoint | Adapter) -> None:
        expected = checkpoint.metadata.get("base_sha256")
        if expected is not None and (self.base.index or files.sha256(self.base.files[0].path) != expected):
            raise UserError(
                f"a checkpoint belongs to the θ₀ that it was trained from; {checkpoint.path} was trained from another "
                f"one than base={self.base.path} (its metadata says base_sha256={expected})"
            )


class Rows:
    """The task vectors of one block, read one after the other into one buffer.

    It stands in for the stack [T, *shape]: it has a length and a shape, it can be iterated, and ``rows[:, at]`` are
    the elements [T, len(at)] at some positions of a flat block. Every iteration reads anew.
    """

    def __init__(
        self,
        vectors: TaskVectors,
        block: Block,
        base: Tensor,
        tasks: Sequence[int],
        device: torch.device,
        hashing: bool,
        check: bool,
    ):
        self.vectors, self.block, self.base, self.tasks = vectors, block, base, tasks
        self.device, self.hashing, self.check = device, hashing, check
        self.shape = torch.Size((len(tasks), *block.shape))

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Tensor]:
        row = self.vectors._buffer("row", self.block.size)
        content, shaped = bytes_of(row), row.view(self.block.shape)
        for task in self.tasks:
            self.vectors.task_vector(task, self.block, self.base, row, content, self.hashing, self.check)
            yield shaped.to(self.device)
        self.hashing = False

    def __getitem__(self, index: tuple[slice, Tensor]) -> Tensor:
        everything, at = index
        assert everything == slice(None)
        checkpoints = self._files()
        if len(at) > SINGLE or checkpoints is None:
            return torch.stack([row.view(-1)[at] for row in self])
        positions, result = at.tolist(), torch.empty(len(self), len(at))
        for checkpoint, values in zip(checkpoints, result, strict=True):
            raw = torch.empty(len(at), dtype=checkpoint.entries[self.block.name].dtype)
            content, size = bytes_of(raw), raw.element_size()
            for i, position in enumerate(positions):
                checkpoint.read(self.block.name, self.block.start + position, content[i * size : (i + 1) * size])
            values.copy_(raw)
        return result.sub_(self.base[at.cpu()]).to(self.device)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """(max_t τ_t, min_t τ_t).

        Rounding is monotone, so θ₀ is subtracted once, from the extremes of the θ_t, and the bits are the same.
        """
        checkpoints = self._files()
        if checkpoints is None:
            return extremes(self)
        row = self.vectors._buffer("row", self.block.size)
        content = bytes_of(row)

        def thetas() -> Iterator[Tensor]:
            for task, checkpoint in zip(self.tasks, checkpoints, strict=True):
                hashes = self.vectors.hashes[task + 1]
                self.vectors._read(checkpoint, hashes, self.block, row, content, self.hashing, self.check)
                yield row.to(self.device)

        found = extremes(thetas())
        self.hashing = False
        for extreme in found:
            extreme.sub_(self.base.to(self.device))
        return found

    def _files(self) -> list[Checkpoint] | None:
        """The checkpoints, if each θ_t can be read as it is."""
        found = [self.vectors.checkpoints[task] for task in self.tasks]
        files = [checkpoint for checkpoint in found if isinstance(checkpoint, Checkpoint)]
        return files if len(files) == len(found) else None

    def stack(self) -> Tensor:
        """All of them at once, [T, *shape], in a buffer of this thread."""
        flat = self.vectors._buffer("stack", len(self) * self.block.size)
        result = flat.view(len(self), self.block.size)
        for task, row in zip(self.tasks, result, strict=True):
            self.vectors.task_vector(task, self.block, self.base, row, bytes_of(row), self.hashing, self.check)
        return result.view(self.shape).to(self.device)


def _differences(base: Checkpoint, checkpoint: Checkpoint | Adapter) -> dict[str, str]:
    """Names of tensors that are not the same kind in both, and what differs."""
    found = {}
    for name in sorted(base.entries.keys() | checkpoint.entries.keys()):
        if name not in checkpoint.entries or name not in base.entries:
            lacking = base if name in checkpoint.entries else checkpoint
            found[name] = f"checkpoints must hold the tensors of their base; {lacking.path} has no {name}"
            continue
        ours, theirs = base.entries[name], checkpoint.entries[name]
        for what, here, there in (
            ("shapes", list(ours.shape), list(theirs.shape)),
            ("dtypes", ours.dtype, theirs.dtype),
        ):
            if here != there:
                found[name] = (
                    f"checkpoints must have the {what} of their base; {name} is {here} in {base.path} and {there} in "
                    f"{checkpoint.path}"
                )
    return found
