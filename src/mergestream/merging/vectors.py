"""Task vectors, read block by block from the files they lie in."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import xxhash
from torch import Tensor

from mergestream.errors import UserError
from mergestream.merging.tensors import TensorFile

VISUAL = "visual."  # where a whole CLIP keeps its image tower
CHUNK = 32_768  # elements that are hashed at once; every block but a tensor's last is a multiple
STACK = 1_310_720  # elements of the task vectors that a thread holds, 5 MB: what its caches take

Result = TypeVar("Result")


class Block(NamedTuple):
    """A piece of one weight: `size` elements from `start` on."""

    name: str
    start: int
    size: int


class TaskVectors:
    """τ_t = θ_t − θ₀ of T checkpoints, in float32, a block at a time; memory depends on neither T nor the model.

    Args:
        base: file of θ₀.
        checkpoints: files of θ_1 … θ_T.
        clip_parameters: number of parameters of the whole CLIP where the files hold its image tower only.
        threads: blocks at a time.
        block: elements of a block, a multiple of `CHUNK`; None fits T task vectors into the caches.

    Raises:
        UserError: if a file is missing or damaged, names or shapes differ, or an integer meets a float.
    """

    def __init__(
        self,
        base: Path,
        checkpoints: Sequence[Path],
        clip_parameters: int | None = None,
        threads: int | None = None,
        block: int | None = None,
    ):
        self.files = [TensorFile(path) for path in (base, *checkpoints)]
        self.base, *self.checkpoints = self.files
        for checkpoint in self.checkpoints:
            _require_same(self.base, checkpoint)
        if not self.names:
            raise UserError(f"a merge needs weights; {base} has no floating-point tensor")
        here = sum(entry.numel for entry in self.base.entries.values())
        self.frozen = max(0, (clip_parameters or here) - here)
        self.threads = threads or os.cpu_count() or 1
        self.block = block or max(CHUNK, STACK // max(1, len(checkpoints)) // CHUNK * CHUNK)
        self.hashes: list[dict[Block, bytes]] = [{} for _ in self.files]
        self._buffers = threading.local()

    def __len__(self) -> int:
        return len(self.checkpoints)

    def __enter__(self) -> TaskVectors:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self.files:
            file.close()

    @cached_property
    def names(self) -> list[str]:
        """Weights that are merged; integer buffers are not."""
        return [name for name, entry in self.base.entries.items() if entry.dtype.is_floating_point]

    @property
    def encoder_names(self) -> list[str]:
        """Those of the image tower; all of them where the files hold nothing else."""
        return [name for name in self.names if name.startswith(VISUAL)] or self.names

    def blocks(self, names: Sequence[str]) -> list[Block]:
        """The pieces of `names`, in order."""
        return [
            Block(name, start, min(self.block, numel - start))
            for name in names
            for numel in [self.base.entries[name].numel]
            for start in range(0, numel, self.block)
        ]

    def map(
        self, function: Callable[[Block, Tensor, Tensor], Result], blocks: Sequence[Block], hashing: bool = False
    ) -> list[Result]:
        """``function(block, base_N, taus_TN)`` of every block, in order, several at a time.

        Both tensors are buffers that the next block overwrites; `function` may change them.

        Raises:
            UserError: if a value is NaN or infinite.
        """

        def work(block: Block) -> Result:
            return function(block, *self._load(block, hashing))

        inner = torch.get_num_threads()
        torch.set_num_threads(1)  # the threads are ours: a block is too small to share one
        try:
            with ThreadPoolExecutor(self.threads) as pool:
                return list(pool.map(work, blocks))
        finally:
            torch.set_num_threads(inner)

    def digests(self) -> list[str]:
        """Hash of each file's merged tensors, θ₀ first: xxh3 over those of the chunks that `map` has read."""
        return [
            xxhash.xxh3_128_hexdigest(b"".join(hashes[block] for block in sorted(hashes))) for hashes in self.hashes
        ]

    def _load(self, block: Block, hashing: bool) -> tuple[Tensor, Tensor]:
        stack = self._stack()[:, : block.size]
        for index, (file, row) in enumerate(zip(self.files, stack, strict=True)):
            dtype = file.entries[block.name].dtype
            raw = row if dtype == torch.float32 else torch.empty(block.size, dtype=dtype)
            file.read(block.name, block.start, raw)
            if hashing:
                content: Any = raw.view(torch.uint8).numpy()
                for first in range(0, block.size, CHUNK):
                    piece = content[first * dtype.itemsize : (first + CHUNK) * dtype.itemsize]
                    at = Block(block.name, block.start + first, CHUNK)
                    self.hashes[index][at] = xxhash.xxh3_128_digest(piece)
            if raw is not row:
                row.copy_(raw)
        base, taus = stack[0], stack[1:]
        taus.sub_(base)
        if not bool(taus.sum().isfinite()):
            self._name_the_culprit(block, base, taus)
        return base, taus

    def _stack(self) -> Tensor:
        if not hasattr(self._buffers, "stack"):
            self._buffers.stack = torch.empty(len(self.files), self.block)
        return self._buffers.stack

    def _name_the_culprit(self, block: Block, base: Tensor, taus: Tensor) -> None:
        for file, values in zip(self.files, (base, *taus), strict=True):
            if not bool(values.isfinite().all()):
                raise UserError(f"checkpoints must be finite; {block.name} in {file.path} has NaN or infinite values")


def _require_same(base: TensorFile, checkpoint: TensorFile) -> None:
    for name in sorted(base.entries.keys() | checkpoint.entries.keys()):
        for holder in (checkpoint, base):
            if name not in holder.entries:
                raise UserError(f"checkpoints must hold the tensors of their base; {holder.path} has no {name}")
        ours, theirs = base.entries[name], checkpoint.entries[name]
        if ours.dtype.is_floating_point != theirs.dtype.is_floating_point:
            raise UserError(f"{name} is {ours.dtype} in {base.path} and {theirs.dtype} in {checkpoint.path}")
        if ours.shape != theirs.shape:
            raise UserError(
                f"checkpoints must have the shapes of their base; {name} is {list(ours.shape)} in {base.path} and "
                f"{list(theirs.shape)} in {checkpoint.path}"
            )
