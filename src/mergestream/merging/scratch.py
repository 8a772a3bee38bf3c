"""The merged task vector between two passes: a calibration sees what the strategy made of all weights."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from mergestream.merging.tensors import bytes_of
from mergestream.strategies.task_vectors import Block


class Memory:
    """A merged task vector in tensors that the caller holds. Thread-safe for blocks that do not overlap.

    Args:
        tensors: float32, by name.
    """

    def __init__(self, tensors: Mapping[str, Tensor]):
        self.tensors = tensors

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, block: Block, tau: Tensor) -> None:
        """Keep a block."""
        self.tensors[block.name].view(-1)[block.start : block.start + block.size] = tau.view(-1).cpu()

    def read(self, block: Block) -> Tensor:
        """Return a block in its shape; the caller may change it."""
        return self.tensors[block.name].view(-1)[block.start : block.start + block.size].clone().view(block.shape)


class Scratch:
    """A merged task vector in a file without a name, which goes with the process. Thread-safe.

    Args:
        sizes: elements of each weight.
        folder: where the file lies; it takes four bytes for each element.
    """

    def __init__(self, sizes: Mapping[str, int], folder: Path):
        self.offsets, end = dict[str, int](), 0
        for name, size in sizes.items():
            self.offsets[name], end = end, end + 4 * size
        self.file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - __exit__ closes it
        self.folder = folder

    def __enter__(self) -> Scratch:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.file.close()

    def write(self, block: Block, tau: Tensor) -> None:
        """Keep a block."""
        values = tau.view(-1).cpu()
        source, offset = bytes_of(values), self.offsets[block.name] + 4 * block.start
        try:
            while len(source):
                count = os.pwrite(self.file.fileno(), source, offset)
                source, offset = source[count:], offset + count
        except OSError as error:
            error.filename = str(self.folder)  # so that the report of a full disk names it
            raise

    def read(self, block: Block) -> Tensor:
        """Return a block in its shape; the caller may change it."""
        values = torch.empty(block.size)
        target, offset = bytes_of(values), self.offsets[block.name] + 4 * block.start
        while len(target):
            count = os.preadv(self.file.fileno(), [target], offset)
            assert count  # every block was written
            target, offset = target[count:], offset + count
        return values.view(block.shape)
