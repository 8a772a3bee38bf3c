"""Files of tensors, read and written piece by piece."""

from __future__ import annotations

import json
import math
import os
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_tensors, require_fetched

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "U32": torch.uint32,
    "U64": torch.uint64,
    "BOOL": torch.bool,
}
CODES = {dtype: code for code, dtype in DTYPES.items()}
Place = tuple[int, torch.dtype, tuple[int, ...], tuple[int, ...]]  # address, dtype, shape, strides
LONGEST_HEADER = 100_000_000  # bytes, the limit of the safetensors format


@dataclass(frozen=True)
class Entry:
    """A tensor in a file.

    Args:
        dtype: its dtype.
        shape: its shape.
        offset: position of its first byte in the file; None if the file does not hold it in one piece.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int | None = None

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


def bytes_of(values: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    flat = values.as_strided((values.numel(),), (1,))  # a single element may have any stride
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # a buffer before 3.12


def is_statistic(name: str) -> bool:
    """Return whether a tensor is a running statistic of batch normalisation, which is measured rather than trained."""
    return name.rpartition(".")[2] in ("running_mean", "running_var")


def is_finite(values: Tensor) -> bool:
    """Return whether every value is finite."""
    if values.dtype.itemsize == 1 and values.dtype.is_floating_point:  # torch does not add up 8-bit floats
        values = values.float()
    # A finite sum proves it, and is cheap; a sum may also overflow, so only the values prove the opposite.
    return math.isfinite(values.sum().item()) or bool(values.isfinite().all())


class TensorFile:
    """A file of tensors that are read piece by piece. Thread-safe; keeps no tensor in memory if it can be avoided.

    Args:
        path: a .safetensors file, or a file that torch.save wrote and that holds only tensors.

    Raises:
        UserError: if the file is missing or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        if not path.is_file():
            raise UserError(f"a checkpoint must be an existing file; {path} is not there")
        self.metadata: dict[str, str] = {}
        self.loaded: dict[str, Tensor] = {}  # tensors without an offset
        self.entries: dict[str, Entry] = {}
        self.places: dict[str, Place] = {}  # equal for names that share their tensor
        self.overlap: tuple[str, str] | None = None  # two names that share a part of their memory
        self.descriptor = os.open(path, os.O_RDONLY)
        try:
            if path.suffix == ".safetensors":
                self._parse_safetensors()
            else:
                self._parse_pt()
        except BaseException:
            self.close()
            raise

    def read(self, name: str, start: int, target: memoryview) -> None:
        """Fill the bytes `target` with the tensor's elements from `start`."""
        entry = self.entries[name]
        offset, size = entry.offset, entry.dtype.itemsize
        if offset is None:
            elements = self.loaded[name].reshape(-1)[start : start + len(target) // size]
            target[:] = bytes_of(elements.contiguous())
            return
        offset += start * size
        while len(target):
            count = os.preadv(self.descriptor, [target], offset)
            if count == 0:
                raise UserError(f"{self.path} ended while {name} was read; was the file replaced meanwhile?")
            target, offset = target[count:], offset + count

    def close(self) -> None:
        """Close the file."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _parse_safetensors(self) -> None:
        require_fetched(self.path)
        size = os.fstat(self.descriptor).st_size
        try:
            (length,) = struct.unpack("<Q", os.pread(self.descriptor, 8, 0))
            if length > min(LONGEST_HEADER, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(os.pread(self.descriptor, length, 8))
            self.metadata = dict(header.pop("__metadata__", None) or {})
            for name, item in header.items():
                if item["dtype"] not in DTYPES:
                    raise UserError(f"{self.path}: {name} is {item['dtype']}, which a merge cannot read")
                first, last = item["data_offsets"]
                entry = Entry(DTYPES[item["dtype"]], tuple(item["shape"]), 8 + length + first)
                if first < 0 or first + entry.numel * entry.dtype.itemsize != last or 8 + length + last > size:
                    raise ValueError(f"{name} lies outside of the file")
                self.entries[name] = entry
        except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
            raise UserError(f"{self.path} must be a valid .safetensors file: {error}") from error

    def _parse_pt(self) -> None:
        tensors = {name: tensor.detach() for name, tensor in read_tensors(self.path, mapped=True).items()}
        start = _mapping_start(self.path, tensors)
        for name, tensor in tensors.items():
            offset = None
            if start is not None and tensor.is_contiguous() and tensor.numel():
                offset = tensor.data_ptr() - start
            elif tensor.numel():
                self.loaded[name] = tensor
            if tensor.dtype not in CODES:
                raise UserError(f"{self.path}: {name} is {tensor.dtype}, which a merge cannot read")
            self.entries[name] = Entry(tensor.dtype, tuple(tensor.shape), offset)
        self.places = {name: _place(tensor) for name, tensor in tensors.items() if tensor.numel()}
        self.overlap = _overlap({place: name for name, place in self.places.items()}, tensors)


def _place(tensor: Tensor) -> Place:
    """Return what is equal for tensors of the same elements in memory."""
    strides = tuple(stride for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    return tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), strides


def _overlap(names: Mapping[Place, str], tensors: Mapping[str, Tensor]) -> tuple[str, str] | None:
    """Return the names of two tensors that share some elements, if there are any.

    Args:
        names: a name for each place in memory.
        tensors: all tensors.
    """
    open_ends: list[tuple[int, str]] = []  # of tensors that may reach into the next ones
    for place in sorted(names, key=lambda place: place[0]):
        name = names[place]
        tensor = tensors[name]
        open_ends = [(end, other) for end, other in open_ends if end > place[0]]
        for _, other in open_ends:
            if np.shares_memory(_as_numpy(tensor), _as_numpy(tensors[other])):
                return other, name
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        open_ends.append((place[0] + (last + 1) * tensor.itemsize, name))
    return None


def _as_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    """Return the memory of a tensor as integers, since NumPy lacks some types."""
    return tensor.view({1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.itemsize]).numpy()


def _mapping_start(path: Path, tensors: Mapping[str, Tensor]) -> int | None:
    """Return the address at which torch mapped a zip file of `torch.save`; None if the tensors are not mapped.

    torch does not tell where a tensor lies in the file, but the archive's index tells where the storages are. A
    storage's address minus its offset in the file is the same for all of them.
    """
    addresses = {tensor.untyped_storage().data_ptr() for tensor in tensors.values() if tensor.numel()}
    if not addresses or not zipfile.is_zipfile(path):
        return None
    offsets = set()
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for record in archive.infolist():
            if record.filename.rpartition("/")[0].endswith("data") and record.file_size:
                file.seek(record.header_offset + 26)  # the lengths of two fields that follow the 30-byte header
                name, extra = struct.unpack("<HH", file.read(4))
                offsets.add(record.header_offset + 30 + name + extra)
    lowest = min(addresses)
    starts = [lowest - offset for offset in offsets]
    fitting = [start for start in starts if {address - start for address in addresses} <= offsets]
    return fitting[0] if len(fitting) == 1 else None  # equal layers or further tensors may allow several


class TensorWriter:
    """A .safetensors file that is written piece by piece. Thread-safe.

    The header comes first in the file, but the metadata in it may be known last. It is written at the end of the
    ``with`` block, into the space that the metadata given here needs.

    Args:
        path: the new file.
        tensors: dtype and shape of each tensor, in the order of the file.
        metadata: values as long as the final ones, which may replace it.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Entry], metadata: Mapping[str, str]):
        self.path = path
        position = 0
        self.header: dict[str, dict[str, Any]] = {}
        for name, entry in tensors.items():
            end = position + entry.numel * entry.dtype.itemsize
            layout = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": [position, end]}
            self.header[name], position = layout, end
        self.size = position
        self.metadata = dict(metadata)
        self.length = -(-len(self._encode()) // 8) * 8
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
        os.truncate(self.descriptor, 8 + self.length + position)

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write `values`, contiguous [n], to the tensor's elements from `start`."""
        source = bytes_of(values)
        offset = 8 + self.length + self.header[name]["data_offsets"][0] + start * values.element_size()
        try:
            while len(source):
                count = os.pwrite(self.descriptor, source, offset)
                source, offset = source[count:], offset + count
        except OSError as error:
            error.filename = str(self.path)  # so that the report of a full disk names it
            raise

    def __enter__(self) -> TensorWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if kind is None:
                os.pwrite(self.descriptor, struct.pack("<Q", self.length) + self._encode().ljust(self.length), 0)
        finally:
            os.close(self.descriptor)
            self.descriptor = -1  # a thread that a signal left behind must not write into another file

    def _encode(self) -> bytes:
        return json.dumps({"__metadata__": self.metadata, **self.header}, separators=(",", ":")).encode()
