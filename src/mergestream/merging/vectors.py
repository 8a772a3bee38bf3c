"""The task vectors of checkpoints, read block by block."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
import xxhash
from torch import Tensor

from mergestream.merging.adapters import Adapter, open_checkpoint
from mergestream.merging.checkpoints import Checkpoint, differences, require_same_base, require_same_integers
from mergestream.merging.curvature import CurvatureFiles
from mergestream.merging.tensors import bytes_of, is_finite, is_statistic
from mergestream.merging.tied_weights import Ties
from mergestream.runtime.errors import UserError
from mergestream.runtime.processes import cores
from mergestream.runtime.rules import require_choice, require_whole
from mergestream.strategies.adjustments import PLAIN as UNADJUSTED
from mergestream.strategies.adjustments import Adjustments
from mergestream.strategies.task_vectors import CHUNK, CPU, PLAIN, Block, Reading, Rows, extremes

VISUAL = ("visual.", "vision_model.", "visual_projection.")  # the image tower of a whole CLIP: open_clip, transformers
ROWS = 4 * CHUNK  # elements of a streamed block: 2 MB, large enough to keep the threads busy
STACK = 20 * CHUNK  # elements of a stack, all task vectors together: 10 MB
WINDOW = 512  # blocks in the queue at a time
SINGLE = 64  # up to so many positions of a block are read one by one
MISMATCHES = ("error", "skip")

Result = TypeVar("Result")


class TaskVectors:
    """τ_t = θ_t − θ₀ of T checkpoints, in float32; a `SurveyedVectors`.

    Memory depends neither on the model nor on T up to 20; beyond, a stack takes 0.5 MB per task and thread.

    Args:
        base: θ₀: a file, an index of shards, or a folder.
        checkpoints: θ_1 … θ_T, likewise, or folders with LoRA adapters on the base.
        clip_parameters: number of parameters of the whole CLIP, for files that hold only its image tower.
        on_mismatch: ``error``, or ``skip`` to leave out tensors whose name, shape or dtype differs between the files.
        threads: blocks that are worked on at a time; None is one for each core.
        block: elements of a block, a multiple of `CHUNK`; None fits the caches.
        device: where the blocks are put.
        say: called with each message about how the files are read that may surprise the user.
        adjustments: the weights of the tasks, and which tensors are merged.

    Raises:
        UserError: if a file is missing, damaged, does not fit the others or was trained from another base, or if an
            argument breaks its rule.
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
        device: torch.device | str = CPU,
        say: Callable[[str], None] = warnings.warn,
        adjustments: Adjustments = UNADJUSTED,
    ):
        require_choice("on_mismatch", on_mismatch, MISMATCHES)
        adjustments.require_tasks(len(checkpoints))
        if threads is not None:
            require_whole("threads", threads, 1)
        if block is not None and (block < CHUNK or block % CHUNK):
            raise UserError(f"block must be a multiple of {CHUNK} elements; got block={block}")
        self.threads = threads or cores()
        self.block = block
        self.say = say
        self.device = torch.device(device)
        self.adjustments = adjustments
        self.base = Checkpoint(base)
        self.ties = Ties()
        self.checkpoints: list[Checkpoint | Adapter] = []
        self.skipped: set[str] = set()  # tensors that on_mismatch=skip leaves out
        self._pool: ThreadPoolExecutor | None = None  # one for all passes, because each thread owns buffers
        self._curvature: dict[str, CurvatureFiles] = {}
        self._buffers = _Buffers()
        self._hashes: list[dict[tuple[str, int], bytes]] = [{} for _ in (base, *checkpoints)]
        try:
            self.base.require_unquantised()
            self.ties = Ties.of_base(self.base)
            for path in checkpoints:
                self._open(path, on_mismatch)
            self.skipped |= {other for name in self.skipped for other in self.ties.names(name)}
            self._require_mergeable()
        except BaseException:
            self.close()
            raise
        here = sum(entry.numel for name, entry in self.base.entries.items() if name not in self.ties.kept)
        self.frozen = max(0, (clip_parameters or here) - here)

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __enter__(self) -> TaskVectors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the threads and close the files."""
        self._end_pool()
        for opened in (*self._inputs, *self._curvature.values()):
            opened.close()

    @cached_property
    def names(self) -> list[str]:
        """The weights that are merged, tied ones under their first name.

        Integers and the running statistics of batch normalisation are not merged.
        """
        return [name for name in self._floating if not is_statistic(name)]

    @property
    def statistics(self) -> list[str]:
        """The running statistics of batch normalisation."""
        return [name for name in self._floating if is_statistic(name)]

    @property
    def _floating(self) -> list[str]:
        return [name for name in self._readable if self.adjustments.merges(self.ties.names(name))]

    @property
    def _readable(self) -> list[str]:
        left_out = self.skipped | self.ties.kept.keys()
        entries = self.base.entries.items()
        return [name for name, entry in entries if entry.dtype.is_floating_point and name not in left_out]

    @property
    def tensors(self) -> list[str]:
        """All names of θ₀, merged or not."""
        return list(self.base.entries)

    @property
    def encoder_names(self) -> list[str]:
        """The weights of the image tower; all of them if the files hold nothing else."""
        return [name for name in self.names if name.startswith(VISUAL)] or self.names

    def numel(self, name: str) -> int:
        """Return the number of elements of a weight."""
        return self.base.entries[name].numel

    def curvature(self, kind: str) -> CurvatureFiles:
        """Return what was saved beside the encoders: ``fisher``, ``gram`` or ``classes``."""
        if kind not in self._curvature:
            self._curvature[kind] = CurvatureFiles(kind, self.base, self.checkpoints, self.device)
        return self._curvature[kind]

    def factors(self, name: str) -> list[tuple[Tensor, Tensor]] | None:
        """Return B_t [m, r] and A_t [r, n] of each task, with τ_t = B_t A_t before ``weights``.

        None if a task has another change than one of low rank, as every encoder that is saved whole.
        """
        found = [c.low_rank(name) if isinstance(c, Adapter) else None for c in self.checkpoints]
        known = [(B.to(self.device), A.to(self.device)) for B, A in (pair for pair in found if pair is not None)]
        return known if len(known) == len(found) else None

    def blocks(self, names: Sequence[str], *, streamed: bool = False, whole: bool = False) -> list[Block]:
        """Return the blocks of `names`, in order.

        Args:
            names: weights.
            streamed: for `map_rows`.
            whole: make each weight one block of its own shape.
        """
        if whole:
            return [Block(name, 0, self.numel(name), self.base.entries[name].shape) for name in names]
        step = self.block or (ROWS if streamed else max(CHUNK, STACK // max(1, len(self)) // CHUNK * CHUNK))
        pieces = []
        for name in names:
            numel = self.numel(name)
            for start in range(0, numel, step):
                size = min(step, numel - start)
                pieces.append(Block(name, start, size, (size,)))
        return pieces

    def map(
        self, function: Callable[[Block, Tensor, Tensor], Result], blocks: Sequence[Block], reading: Reading = PLAIN
    ) -> list[Result]:
        """Return ``function(block, base, taus)`` of every block, in order; several blocks are worked on at a time.

        Args:
            function: gets θ₀'s block, float32 of the block's shape, and the task vectors, the stack [T, *shape]. Both
                are buffers that the next block overwrites; the function may change them.
            blocks: see `blocks`.
            reading: see `Reading`.

        Raises:
            UserError: if every value must be finite, and one is not.
        """

        def work(block: Block) -> Result:
            base = self._base(block, reading)
            stack = self._buffer("stack", len(self) * block.size).view(len(self), block.size)
            for task, row in enumerate(stack):
                self._read_task_vector(task, block, base, row, reading)
            device = reading.device or self.device
            return function(
                block, base.values.view(block.shape).to(device), stack.view(len(self), *block.shape).to(device)
            )

        return self._in_threads(work, blocks)

    def map_rows(
        self,
        function: Callable[[Block, Tensor, Rows], Result],
        blocks: Sequence[Block],
        reading: Reading = PLAIN,
        *,
        tasks: Sequence[int] | None = None,
    ) -> list[Result]:
        """Like `map`, but stream the rows: `function` gets `Rows` instead of a stack, of all tasks or of some."""
        chosen = range(len(self)) if tasks is None else tasks

        def work(block: Block) -> Result:
            base = self._base(block, reading)
            rows = StreamedRows(self, block, base, chosen, reading)
            return function(block, base.values.view(block.shape).to(reading.device or self.device), rows)

        return self._in_threads(work, blocks)

    def check(self) -> None:
        """Read everything once to find the file that a NaN or an infinite value comes from.

        Runs in the calling thread, so the function of `map` may call it.

        Raises:
            UserError: naming the weight and the file, if there is one.
        """
        reading = Reading(CPU, finite=True)
        for block in self.blocks(self._floating, streamed=True):
            for _ in StreamedRows(self, block, self._base(block, reading), range(len(self)), reading):
                pass

    def digests(self) -> list[str]:
        """Return a hash of each input, θ₀ first: xxh3 over the chunks that were read with hashing, in order."""
        chunks = [xxhash.xxh3_128_hexdigest(b"".join(h[at] for at in sorted(h))) for h in self._hashes]
        inputs = zip(self._inputs, chunks, strict=True)
        return [source.digest if isinstance(source, Adapter) else digest for source, digest in inputs]

    @property
    def _inputs(self) -> list[Checkpoint | Adapter]:
        return [self.base, *self.checkpoints]

    def _open(self, path: Path, on_mismatch: str) -> None:
        """Open the next checkpoint, and compare it with the base."""
        checkpoint = open_checkpoint(path, self.base, self.ties, self.say)
        self.checkpoints.append(checkpoint)
        require_same_base(self.base, checkpoint)
        if isinstance(checkpoint, Checkpoint):
            checkpoint.adopt_names(self.base, self.say)
            self.ties.complete(checkpoint, self.base)
        found = differences(self.base, checkpoint)
        if found and on_mismatch == "error":
            raise UserError(f"{next(iter(found.values()))}. Write on_mismatch=skip to leave such tensors out.")
        if dropped := sorted(found.keys() - self.base.entries.keys()):
            self.say(f"not in the base, so dropped from {path} (on_mismatch=skip): {', '.join(dropped)}")
        self.skipped |= found.keys()
        if isinstance(checkpoint, Checkpoint):
            checkpoint.require_unquantised()
            self.ties.require_in(checkpoint, self.base)
            require_same_integers(self.base, checkpoint, self.base.entries.keys() - self.skipped)

    def _require_mergeable(self) -> None:
        self.adjustments.require_matches([self.ties.names(name) for name in self._readable])
        if not self.names:
            raise UserError(
                f"a merge needs weights; {self.base.path} has no floating-point tensor that all files share"
            )
        if wide := [name for name in self.names if self.base.entries[name].dtype == torch.float64]:
            self.say(f"a merge computes in float32; {wide[0]} in {self.base.path} is float64, and so is the output")

    def _in_threads(self, work: Callable[[Block], Result], blocks: Sequence[Block]) -> list[Result]:
        # LAPACK asks its own thread how many to use, and another number changes the bits.
        self._pool = self._pool or ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,))
        with single_threaded():
            try:
                results: list[Result] = []
                for first in range(0, len(blocks), WINDOW):  # a large model has too many blocks to queue all at once
                    results += self._pool.map(work, blocks[first : first + WINDOW])
                return results
            except BaseException as error:
                self._end_pool(wait=isinstance(error, Exception))  # drops the queue; a signal must not wait for a block
                raise

    def _end_pool(self, wait: bool = True) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait, cancel_futures=True)
            self._pool = None

    def _base(self, block: Block, reading: Reading) -> BaseBlock:
        """Return θ₀'s block, in a buffer."""
        values = self._buffer("base", block.size)
        self._read(0, self.base, block, values, reading)
        if is_finite(values):
            return BaseBlock(values, None)
        if reading.finite and values.isnan().any():
            raise _not_finite(block.name, self.base.path)
        return BaseBlock(values, values.isinf())

    def _read_task_vector(self, task: int, block: Block, base: BaseBlock, out: Tensor, reading: Reading) -> None:
        """Fill `out`, float32 [n] on the CPU, with a block of τ."""
        checkpoint = self.checkpoints[task]
        if isinstance(checkpoint, Adapter):
            checkpoint.task_vector(block.name, block.start, base.values, out)
            suspicious = base.infinite is not None
        else:
            self._read(task + 1, checkpoint, block, out, reading)
            suspicious = base.infinite is not None or (reading.finite and not is_finite(out))
            base.subtract_from(out)
        if suspicious and reading.finite and not is_finite(out):
            raise _not_finite(block.name, checkpoint.path)
        if self.adjustments.weights is not None and not is_statistic(block.name):
            out.mul_(self.adjustments.weights[task])

    def _read(self, number: int, checkpoint: Checkpoint, block: Block, out: Tensor, reading: Reading) -> None:
        """Fill `out`, float32 [n] on the CPU, with a block of input `number`; input 0 is θ₀."""
        dtype = checkpoint.entries[block.name].dtype
        raw = out if dtype == torch.float32 else self._buffer("raw", block.size, dtype)
        content = bytes_of(raw)
        checkpoint.read(block.name, block.start, content)
        if reading.hashing:
            self._hash(self._hashes[number], block, content, dtype.itemsize)
        if raw is not out:
            out.copy_(raw)
        if dtype == torch.float64 and not is_finite(out) and bool((out.isinf() & raw.isfinite()).any()):
            raise UserError(
                f"a merge computes in float32; {block.name} in {checkpoint.path} has values that are too large for it"
            )

    @staticmethod
    def _hash(hashes: dict[tuple[str, int], bytes], block: Block, content: memoryview, itemsize: int) -> None:
        """Hash the chunks of a block that are not hashed yet."""
        for start in range(0, block.size, CHUNK):
            chunk = (block.name, block.start + start)
            if chunk not in hashes:
                first = start * itemsize
                hashes[chunk] = xxhash.xxh3_128_digest(content[first : first + CHUNK * itemsize])

    def _buffer(self, purpose: str, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return memory of this thread, the same for every block: allocating it costs more than the work."""
        kept = self._buffers.kept.get((purpose, dtype))
        if kept is None or len(kept) < size:
            self._buffers.kept[purpose, dtype] = kept = torch.empty(size, dtype=dtype)
        return kept[:size]


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let torch use one thread for each operation: weights and blocks are worked on side by side instead."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class BaseBlock(NamedTuple):
    """A block of θ₀.

    Args:
        values: float32 [n].
        infinite: where they are infinite, as in masks; None for nowhere.
    """

    values: Tensor
    infinite: Tensor | None

    def subtract_from(self, theta: Tensor) -> None:
        """Turn θ, [..., n] on any device, into τ. Equal infinities differ by zero."""
        values = self.values.to(theta.device)
        if self.infinite is None:
            theta.sub_(values)
        else:
            same = self.infinite.to(theta.device) & (theta == values)
            theta.sub_(values).masked_fill_(same, 0)

    def at(self, positions: Tensor) -> BaseBlock:
        """Return the elements at `positions`."""
        infinite = None if self.infinite is None else self.infinite[positions]
        return BaseBlock(self.values[positions], infinite)


class _Buffers(threading.local):
    """The buffers of each thread, by purpose and dtype."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, torch.dtype], Tensor] = {}


class StreamedRows:
    """`Rows` of one block, read into one buffer. Every iteration reads the files again.

    Args:
        vectors: the task vectors.
        block: the block.
        base: θ₀'s block.
        tasks: the tasks of the rows.
        reading: see `Reading`.
    """

    def __init__(self, vectors: TaskVectors, block: Block, base: BaseBlock, tasks: Sequence[int], reading: Reading):
        self._vectors, self._block, self._base, self._tasks, self._reading = vectors, block, base, tasks, reading
        self._device = reading.device or vectors.device
        self.shape = torch.Size((len(tasks), *block.shape))

    def __len__(self) -> int:
        return len(self._tasks)

    def __iter__(self) -> Iterator[Tensor]:
        row = self._vectors._buffer("row", self._block.size)
        for task in self._tasks:
            self._vectors._read_task_vector(task, self._block, self._base, row, self._reading)
            yield row.view(self._block.shape).to(self._device)

    def extremes(self) -> tuple[Tensor, Tensor]:
        """Return (max_t τ_t, min_t τ_t).

        Subtracts θ₀ only from the extremes of the θ_t. Rounding is monotone, so the bits are the same.
        """
        files = self._files()
        if files is None:
            return extremes(self)
        found = extremes(self._thetas(files))
        for extreme in found:
            self._base.subtract_from(extreme)
        return found

    def at(self, positions: Tensor) -> Tensor:
        """Return the elements [T, n] at `positions`, int64 [n], of the flattened block."""
        files = self._files()
        if len(positions) > SINGLE or files is None:
            return torch.stack([row.view(-1)[positions] for row in self])
        result = torch.empty(len(self), len(positions))
        for file, values in zip(files, result, strict=True):
            raw = torch.empty(len(positions), dtype=file.entries[self._block.name].dtype)
            content, size = bytes_of(raw), raw.element_size()
            for i, position in enumerate(positions.tolist()):
                file.read(self._block.name, self._block.start + position, content[i * size : (i + 1) * size])
            values.copy_(raw)
        self._base.at(positions.cpu()).subtract_from(result)
        return result.to(self._device)

    def _thetas(self, files: Sequence[Checkpoint]) -> Iterator[Tensor]:
        row = self._vectors._buffer("row", self._block.size)
        for task, file in zip(self._tasks, files, strict=True):
            self._vectors._read(task + 1, file, self._block, row, self._reading)
            yield row.to(self._device)

    def _files(self) -> list[Checkpoint] | None:
        """Return the checkpoints of the rows; None if τ_t is not θ_t − θ₀: weighted, or that of an adapter."""
        if self._vectors.adjustments.weights is not None:
            return None
        found = [self._vectors.checkpoints[task] for task in self._tasks]
        files = [checkpoint for checkpoint in found if isinstance(checkpoint, Checkpoint)]
        return files if len(files) == len(found) else None


def _not_finite(name: str, path: Path) -> UserError:
    return UserError(
        f"checkpoints must be finite, except for infinities that all files share; {name} in {path} has NaN or infinite "
        "values, or is finite where the base is not"
    )
