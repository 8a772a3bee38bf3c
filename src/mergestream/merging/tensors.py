"""Tensors in files, read in pieces: .safetensors by offset, .pt by memory map; and a .safetensors written in pieces."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from mergestream.errors import UserError
from mergestream.files import read_tensors

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors format


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a file.

    Args:
        dtype: its type.
        shape: its shape.
        offset: of its first byte in the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        count = 1
        for side in self.shape:
            count *= side
        return count


class TensorFile:
    """A checkpoint whose tensors are read piece by piece; thread-safe, and nothing of it stays in memory.

    Args:
        path: a .safetensors or a tensors-only .pt file.

    Raises:
        UserError: if the file is missing or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UserError(f"a checkpoint must be an existing file; {path} is not there")
        self.loaded: dict[str, Tensor] | None = None
        self.descriptor = -1
        if path.suffix == ".safetensors":
            self.descriptor = os.open(path, os.O_RDONLY)
            self.entries = self._parse()
        else:
            self.loaded = read_tensors(path)
            self.entries = {name: Entry(t.dtype, tuple(t.shape), 0) for name, t in self.loaded.items()}

    def read(self, name: str, start: int, out: Tensor) -> None:
        """Fill `out`, contiguous [n] in the tensor's dtype on the CPU, with its elements from `start` on."""
        entry = self.entries[name]
        if self.loaded is not None:
            out.copy_(self.loaded[name].reshape(-1)[start : start + len(out)])
            return
        content: Any = out.view(torch.uint8).numpy()
        target = memoryview(content)
        offset = entry.offset + start * out.element_size()
        while len(target):
            count = os.preadv(self.descriptor, [target], offset)
            if count == 0:
                raise UserError(f"{self.path} ended while {name} was read; was it replaced meanwhile?")
            target, offset = target[count:], offset + count

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _parse(self) -> dict[str, Entry]:
        size = os.fstat(self.descriptor).st_size
        try:
            (length,) = struct.unpack("<Q", os.pread(self.descriptor, 8, 0))
            if length > min(LONGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(os.pread(self.descriptor, length, 8))
            header.pop("__metadata__", None)
            entries = {}
            for name, item in header.items():
                first, last = item["data_offsets"]
                entry = Entry(DTYPES[item["dtype"]], tuple(item["shape"]), 8 + length + first)
                if first + entry.numel * entry.dtype.itemsize != last or 8 + length + last > size:
                    raise ValueError(f"{name} does not lie within the file")
                entries[name] = entry
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            self.close()
            raise UserError(f"{self.path} must be a sound .safetensors file: {error}") from error
        return entries


class TensorWriter:
    """A .safetensors file whose tensors are written piece by piece; thread-safe.

    The header comes first in the file but its metadata may be known last: `close` writes it, in as many bytes as the
    metadata given here takes.

    Args:
        path: the file to make.
        tensors: dtype and shape of each tensor, in the order of the file.
        metadata: with values as long as the final ones.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Entry], metadata: Mapping[str, str]):
        position = 0
        self.header: dict[str, dict[str, Any]] = {}
        for name, entry in tensors.items():
            end = position + entry.numel * entry.dtype.itemsize
            layout = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": [position, end]}
            self.header[name], position = layout, end
        self.length = -(-len(self._encode(metadata)) // 8) * 8
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        self.metadata = dict(metadata)
        os.truncate(self.descriptor, 8 + self.length + position)

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Put `values`, contiguous [n], at the tensor's elements from `start` on."""
        content: Any = values.view(torch.uint8).numpy()
        source = memoryview(content)
        offset = 8 + self.length + self.header[name]["data_offsets"][0] + start * values.element_size()
        while len(source):
            count = os.pwrite(self.descriptor, source, offset)
            source, offset = source[count:], offset + count

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                text = self._encode(self.metadata)
                os.pwrite(self.descriptor, struct.pack("<Q", self.length) + text.ljust(self.length), 0)
        finally:
            os.close(self.descriptor)

    def _encode(self, metadata: Mapping[str, str]) -> bytes:
        return json.dumps({"__metadata__": dict(metadata), **self.header}, separators=(",", ":")).encode()
