"""The output of a merge: a file, or a folder with the shards and side files of the base."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor

from mergestream.merging.checkpoints import WEIGHTS, Checkpoint
from mergestream.merging.tensors import Entry, TensorWriter
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_json

UNMERGED = (".h5", ".msgpack", ".gguf", ".onnx", ".ot")  # formats that would hold the base's weights
RECORD = "merge.json"  # marks a folder that a merge wrote


class Output:
    """Writes the tensors of one merge.

    Args:
        entries: dtype and shape of each tensor.
        writers: the file that each tensor is written to.
    """

    def __init__(self, entries: Mapping[str, Entry], writers: Mapping[str, TensorWriter]):
        self.entries, self.writers = entries, writers

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Write `values`, contiguous [n], to the tensor's elements from `start`."""
        self.writers[name].write(name, start, values)

    def set_metadata(self, metadata: Mapping[str, str]) -> None:
        """Set the metadata of all files."""
        for writer in self.writers.values():
            writer.metadata = dict(metadata)


def path_of(out: Path, scale: float) -> Path:
    """Return the path of one of several λ: `out` with -λ after its stem."""
    suffix = out.suffix if out.suffix == ".safetensors" else ""
    return out.with_name(f"{out.name.removesuffix(suffix)}-{scale:.12g}{suffix}")


def check_out(out: Path) -> None:
    """Check that a merge may write `out`: a .safetensors file, a new folder, or a folder that a merge wrote.

    Raises:
        UserError: if it may not.
    """
    if out.suffix == ".safetensors":
        if out.is_dir():
            raise UserError(f"out must be a file if it ends in .safetensors; got out={out}, a folder")
    elif out.is_file() or out.suffix in WEIGHTS:
        raise UserError(f"out must end in .safetensors, or be a folder; got out={out}")
    elif out.is_dir() and (others := sorted(_names_in(out) - _written(out))):
        raise UserError(f"out must be a new folder, or one that a merge wrote; out={out} holds {others[0]}")


def require_new(inputs: Iterable[Path], outs: Iterable[Path]) -> None:
    """Check that no output replaces an input, or a file in the folder of one.

    Raises:
        UserError: if one does.
    """
    for out in outs:
        for path in inputs:
            if path.resolve() in (out.resolve(), *(() if path.is_file() else out.resolve().parents)):
                raise UserError(
                    f"out must not replace an input; out={out} would replace or change {path}. Name another file, or "
                    "write overwrite=true."
                )


def _names_in(folder: Path) -> set[str]:
    """Return the names of everything in a folder and its sub-folders."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _written(folder: Path) -> set[str]:
    """Return the names of the files that a merge wrote to `folder`."""
    return {RECORD, *read_json(folder / RECORD, "files")["files"]} if (folder / RECORD).is_file() else set()


@contextmanager
def output(
    out: Path,
    base: Checkpoint,
    entries: Mapping[str, Entry],
    metadata: Mapping[str, str],
    say: Callable[[str], None],
) -> Iterator[Output]:
    """Yield an `Output`. `out` appears when the block succeeds, and stays as it was otherwise.

    Args:
        out: a .safetensors file, or a folder.
        base: a folder gets its shards and side files.
        entries: dtype and shape of each tensor.
        metadata: values as long as the final ones; see `TensorWriter`.
        say: gets a message if weights in sub-folders of the base are left out.
    """
    if out.suffix == ".safetensors":
        with files.whole(out) as partial, TensorWriter(partial, entries, metadata) as writer:
            yield Output(entries, dict.fromkeys(entries, writer))
        return
    with _whole_folder(out) as partial, ExitStack() as stack:
        writers: dict[str, TensorWriter] = {}
        for file in base.files:
            inside = {name: entry for name, entry in entries.items() if base.holders[name] is file}
            writer = stack.enter_context(TensorWriter(partial / _shard_name(file.path.name), inside, metadata))
            writers |= dict.fromkeys(inside, writer)
        yield Output(entries, writers)
        if base.index is not None:
            _write_index(partial / _index_name(base.index.name), writers)
        _copy_side_files(base, partial, say)
        _update_dtype(partial / "config.json", {entries[name].dtype for name in writers})
        record = {"files": sorted(_names_in(partial)), **next(iter(writers.values())).metadata}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def _write_index(path: Path, writers: Mapping[str, TensorWriter]) -> None:
    """Write the index of a sharded checkpoint."""
    size = sum({id(writer): writer.size for writer in writers.values()}.values())
    shards = {name: writers[name].path.name for name in sorted(writers)}
    content = {"metadata": {"total_size": size}, "weight_map": shards}
    path.write_text(json.dumps(content, indent=2) + "\n")


def _copy_side_files(base: Checkpoint, target: Path, say: Callable[[str], None]) -> None:
    """Copy the base's other files, such as its config and tokenizer, and its sub-folders."""
    folder = base.path if base.path.is_dir() else base.index.parent if base.index else None
    if folder is None:
        return
    left = []
    for path in _files_of(folder, ()):
        inside = path.relative_to(folder)
        if not _is_weights(path):
            (target / inside).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target / inside)
        elif len(inside.parts) > 1:
            left.append(inside.as_posix())
    if left:
        say(f"weights in sub-folders of {folder} are neither merged nor copied: {', '.join(left)}")


def _files_of(folder: Path, above: tuple[Path, ...]) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders, but nothing hidden and no other merge.

    Args:
        folder: the folder.
        above: the folders that it lies in, since a link may lead back to one.
    """
    above = (*above, folder.resolve())
    for path in sorted(folder.iterdir()):
        if path.name[0] == "." or path.name == RECORD:
            continue
        if path.is_file():
            yield path
        elif path.is_dir() and path.resolve() not in above and not (path / RECORD).is_file():
            yield from _files_of(path, above)


def _update_dtype(config: Path, dtypes: set[torch.dtype]) -> None:
    """Put the dtype of the merged weights into a config.json that states one."""
    floating = {dtype for dtype in dtypes if dtype.is_floating_point}
    content = read_json(config) if config.is_file() else {}
    changed = {
        key: str(dtype).removeprefix("torch.")
        for key in ("torch_dtype", "dtype")
        if key in content
        for dtype in floating
    }
    if len(floating) == 1 and any(content[key] != value for key, value in changed.items()):
        config.write_text(json.dumps({**content, **changed}, indent=2) + "\n")


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that replaces it when the block succeeds.

    Two folders cannot be exchanged in one step. If the power fails in between, the next merge restores the old one.
    """
    path = Path(os.path.abspath(path))
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".old-{path.name}")
    if old.exists() and not path.exists():
        old.rename(path)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", suffix=f"-{path.name}", dir=path.parent))
    try:
        partial.chmod(0o777 & ~_umask())
        yield partial
        for file in partial.rglob("*"):
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
        partial.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        for folder in made:  # innermost first; another process may be using it
            with suppress(OSError):
                folder.rmdir()
        raise
    shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _shard_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    return name if suffix == "safetensors" else f"{stem.replace('pytorch_model', 'model')}.safetensors"


def _index_name(name: str) -> str:
    return f"{_shard_name(name.removesuffix('.index.json'))}.index.json"


def _is_weights(path: Path) -> bool:
    return path.suffix in (*WEIGHTS, *UNMERGED) or path.name.endswith(".index.json")
