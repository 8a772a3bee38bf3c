"""Files that appear whole or not at all, and the two formats that the package writes: safetensors and JSON."""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergestream.errors import UserError


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what is written there becomes `path` in one step when the block ends well."""
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        for folder in made:  # innermost first; another process may have put something into it
            with suppress(OSError):
                folder.rmdir()
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON; NaN, which JSON has not, becomes null."""
    with whole(path) as partial:
        partial.write_text(json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read a JSON file that holds an object with at least `keys`.

    Raises:
        UserError: if it does not.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing. Delete its folder and run again.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be a JSON file, but cannot be read ({error}). Delete it, run again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, but holds {type(value).__name__}. Delete it, run again.")
    if missing := [key for key in keys if key not in value]:
        raise UserError(f"{path} must hold {', '.join(keys)}; it has no {missing[0]}. Delete it, run again.")
    return value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as safetensors, contiguous and on the CPU; the same content gives the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as partial:
        save_file(plain, partial, metadata=dict(metadata or {}))
        _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file, which the library writes in an order of chance, into that of its keys."""
    with path.open("rb+") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        if metadata := header.pop("__metadata__", None):
            ordered = {"__metadata__": dict(sorted(metadata.items())), **header}
            text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
            assert len(text) <= length  # the same characters as before, in another order
            file.seek(8)
            file.write(text.ljust(length))


def read_tensors(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read a .safetensors file, or a .pt file with tensors only (no pickled code runs).

    A .pt file may hold the state dict itself or have it under "state_dict", "model_state_dict" or "model".

    Args:
        path: the file.
        mapped: leave the tensors of a .pt file on the disk, where its format allows, until they are touched.

    Raises:
        UserError: if the file is missing, damaged, or holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"a checkpoint must be an existing file; {path} is not there")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mmap = mapped and zipfile.is_zipfile(path)  # what torch.save wrote before 1.6 is no archive
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (SafetensorError, RuntimeError, OSError, ValueError, EOFError, KeyError, UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} must be a sound .safetensors or tensors-only .pt file: {reason}") from error
    state = loaded
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            state = loaded[key]
            break
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path} must hold a flat dict of tensors; got {type(state).__name__}")
    return state


def sha256(path: Path) -> str:
    """Hash of a file's content; remembered for as long as the file stays as it is."""
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size)


@cache
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        return digest.hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file, without reading its tensors.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} must be a sound .safetensors file: {error}. Delete it and train again.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
