"""Atomic file writing, and the two formats that the package writes: safetensors and JSON.

Both formats carry a sha256 of their own content. Every read checks it, so altered files are detected.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
import time
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, BinaryIO

from safetensors import SafetensorError, safe_open

from mergestream.runtime.errors import UserError, first_line

if TYPE_CHECKING:  # torch takes seconds to import, and reading JSON does not need it
    from torch import Tensor

CHECKSUM = "checksum"
POINTER = b"version https://git-lfs.github.com/spec/"
UNKNOWN = "0" * 64  # placeholder for the checksum while it is computed


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there becomes `path` in one step when the block succeeds.

    Raises:
        UserError: if the file cannot be written, for example because the disk is full.
    """
    made = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{uuid.uuid4().hex[:12]}-{path.name}")
    try:
        yield partial
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        for folder in made:  # innermost first; another process may be using it
            with suppress(OSError):
                folder.rmdir()
        # Errors of writing name no file, or come from the safetensors library.
        if isinstance(error, SafetensorError) or (isinstance(error, OSError) and error.filename is None):
            reason = getattr(error, "strerror", None) or str(error)
            raise UserError(
                f"cannot write {path} ({reason}); it is unchanged. Free some space and type the same command again."
            ) from error
        raise


def _sync(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut."""
    with suppress(OSError):  # some file systems cannot open or sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_partials(folder: Path, hours: float = 0) -> None:
    """Delete the temporary files of killed writers below `folder`.

    Args:
        folder: a folder that only this process writes into, unless `hours` is set.
        hours: age from which a temporary file counts as abandoned, for folders with several writers.
    """
    for path in folder.rglob(".partial-*"):
        with suppress(OSError):
            # Merges below a run have their own writers.
            if (
                path.is_file()
                and "merges" not in path.relative_to(folder).parts
                and time.time() - path.stat().st_mtime >= 3600 * hours
            ):
                path.unlink()


def write_plain_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON without a checksum, for a file that other programs read."""
    with whole(path) as partial:
        partial.write_text(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write `value` as JSON with its checksum. NaN and infinities, which JSON lacks, become null."""
    plain = _plain(value)
    with whole(path) as partial:
        partial.write_text(json.dumps({**plain, CHECKSUM: _of_json(plain)}, indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *keys: str, own: bool = False) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: the file.
        keys: keys that the object must have.
        own: require the checksum that `write_json` adds; other files may lack it.

    Raises:
        UserError: if the file is missing, damaged, or lacks a key.
    """
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (ValueError, RecursionError) as error:  # of JSON, or of the encoding
        raise UserError(f"{path} must be a JSON file, but cannot be read ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, but holds {type(value).__name__}")
    checksum = value.pop(CHECKSUM, None)
    if (own or checksum is not None) and checksum != _of_json(value):
        raise UserError(f"{path} was altered (its checksum differs)")
    if missing := [key for key in keys if key not in value]:
        raise UserError(f"{path} must hold {', '.join(keys)}; it has no {missing[0]}")
    return value


def _of_json(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write tensors as safetensors and return the checksum. Equal content gives equal bytes."""
    from safetensors.torch import save_file

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path) as partial:
        save_file(plain, partial, metadata={**(metadata or {}), CHECKSUM: UNKNOWN})
        return _seal(partial)


def _seal(path: Path) -> str:
    """Sort the metadata of a new safetensors file, whose order is random, and fill in the checksum."""
    with path.open("rb+") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        ordered = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()
        assert len(text) <= length  # the same characters in another order
        file.seek(8)
        file.write(text.ljust(length))
        file.seek(0)
        checksum = _digest(file)
        at = text.index(f'"{CHECKSUM}":"{UNKNOWN}"'.encode()) + len(CHECKSUM) + 4
        file.seek(8 + at)
        file.write(checksum.encode())
        return checksum


def stated_checksum(path: Path) -> str:
    """Return the checksum that a safetensors file says it has, without torch and without a look at its tensors.

    Raises:
        UserError: if the file is missing, damaged, or has no checksum.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        return str(header["__metadata__"][CHECKSUM])
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except (ValueError, KeyError, TypeError, OverflowError, MemoryError, struct.error) as error:
        raise UserError(f"{path} must be a .safetensors file with a checksum ({first_line(error)})") from error


def verify(path: Path) -> str:
    """Check a safetensors file that `write_tensors` wrote, and return its checksum; cached while the file is unchanged.

    Raises:
        UserError: if the file is missing or its content was altered.
    """
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    return _verify(path, status.st_mtime_ns, status.st_size)


def checksum(path: Path) -> str:
    """Return the checksum of a file: that of `verify` for safetensors, and the sha256 of any other.

    Raises:
        UserError: if the file is missing, or a safetensors file was altered.
    """
    if path.suffix == ".safetensors":
        return verify(path)
    if not path.is_file():
        raise UserError(f"{path} is missing")
    return sha256(path)


@cache
def _verify(path: Path, mtime_ns: int, size: int) -> str:
    checksum = read_metadata(path).get(CHECKSUM, "")
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(struct.unpack("<Q", start)[0])
        unsealed = header.replace(checksum.encode(), UNKNOWN.encode(), 1)
        if len(checksum) != len(UNKNOWN) or _digest(file, start + unsealed) != checksum:
            raise UserError(f"{path} was altered (its checksum differs)")
    return checksum


def read_tensors(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """Read a .safetensors file, or a .pt file that holds only tensors; no pickled code runs.

    A .pt file may hold the state dict itself, or nest it under "state_dict", "model_state_dict" or "model".

    Args:
        path: the file.
        mapped: memory-map the tensors of a .pt file where its format allows it.

    Raises:
        UserError: if the file is missing, damaged, or holds anything but tensors.
    """
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise UserError(f"a checkpoint must be an existing file; {path} is not there")
    try:
        require_fetched(path)
        if path.suffix == ".safetensors":
            if CHECKSUM in read_metadata(path):
                verify(path)
            return load_file(path)
        if _is_torchscript(path):
            raise UserError(f"{path} must hold only tensors; it is a TorchScript archive. {_conversion(path, True)}")
        mmap = mapped and zipfile.is_zipfile(path)  # torch.save before 1.6 wrote no archive
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except UnpicklingError as error:
        raise UserError(
            f"{path} must hold only tensors; it holds a pickled model or other objects. {_conversion(path)}"
        ) from error
    except UserError:
        raise
    except Exception as error:  # torch has many for damaged files, and for types that its old format cannot hold
        raise UserError(f"{path} must be a valid .safetensors or tensors-only .pt file: {first_line(error)}") from error
    state = loaded
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            state = loaded[key]
            break
    if not isinstance(state, dict) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise UserError(f"{path} must hold a flat dict of tensors; got {type(state).__name__}")
    if sparse := [name for name, tensor in state.items() if tensor.layout != torch.strided]:
        raise UserError(f"{path} must hold dense tensors; {sparse[0]} is sparse. Save {sparse[0]}.to_dense() instead.")
    return state


def require_fetched(path: Path) -> None:
    """Check that a file is not the pointer that Git LFS leaves in its place until it is fetched.

    Raises:
        UserError: if it is.
    """
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            raise UserError(f"{path} must hold tensors; it is a pointer of Git LFS. Fetch the file with git lfs pull.")


def _is_torchscript(path: Path) -> bool:
    """Return whether a file is an archive of TorchScript, which holds code besides tensors."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.partition("/")[2] == "constants.pkl" for name in archive.namelist())


def _conversion(path: Path, torchscript: bool = False) -> str:
    """Return how to convert a file that is trusted to one that holds only tensors."""
    load = "torch.jit.load" if torchscript else "torch.load"
    options = "" if torchscript else ", weights_only=False"
    target = str(path.with_suffix(".weights.pt"))
    return (
        f"If you trust it, convert it: import torch; model = {load}({str(path)!r}{options}, map_location='cpu'); "
        f"torch.save(getattr(model, 'state_dict', lambda: model['state_dict'])(), {target!r})"
    )


def sha256(path: Path) -> str:
    """Return the sha256 of a file's content; cached while the file is unchanged."""
    status = path.stat()
    return _sha256(path, status.st_mtime_ns, status.st_size)


@cache
def _sha256(path: Path, mtime_ns: int, size: int) -> str:
    with path.open("rb") as file:
        return _digest(file)


def _digest(file: BinaryIO, start: bytes = b"") -> str:
    """Return the sha256 of `start` and the rest of the file."""
    digest = hashlib.sha256(start)
    while piece := file.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file without reading its tensors.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} must be a valid .safetensors file: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
