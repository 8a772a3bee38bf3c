"""Where a merge is written: one file, or a folder like the base's with the same shards and its side files."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from mergestream.merging.checkpoints import WEIGHTS, Checkpoint
from mergestream.merging.tensors import Entry, TensorWriter
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_json

UNMERGED = (".h5", ".msgpack", ".gguf", ".onnx", ".ckpt", ".ot")  # the same weights in other formats, before the merge
RECORD = "merge.json"  # marks a folder that a merge wrote


class Output:
    """The writers of one merge.

    Args:
        writers: by the name of the tensor that they write.
    """

    def __init__(self, writers: Mapping[str, TensorWriter]):
        self.writers = writers

    def write(self, name: str, start: int, values: Tensor) -> None:
        self.writers[name].write(name, start, values)

    def set_metadata(self, metadata: Mapping[str, str]) -> None:
        for writer in self.writers.values():
            writer.metadata = dict(metadata)


def check_out(out: Path) -> None:
    """
    Raises:
        UserError: if `out` can be neither a new file nor a folder that a merge may replace.
    """
    if out.suffix == ".safetensors":
        if out.is_dir():
            raise UserError(f"out must be a file where it ends in .safetensors; got out={out}, a folder")
    elif out.is_file() or out.suffix in WEIGHTS:
        raise UserError(f"out must end in .safetensors, or be a folder; got out={out}")
    elif out.is_dir() and (others := sorted({path.name for path in out.iterdir()} - _written(out))):
        raise UserError(f"out must be a new folder, or one that a merge wrote; out={out} holds {others[0]}")


def _written(folder: Path) -> set[str]:
    """What the merge that wrote `folder` put there."""
    return {RECORD, *read_json(folder / RECORD, "files")["files"]} if (folder / RECORD).is_file() else set()


@contextmanager
def output(out: Path, base: Checkpoint, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> Iterator[Output]:
    """Writers for `entries`; `out` appears when the block ends well, and is as before if not.

    Args:
        out: a .safetensors file, or a folder.
        base: whose shards and side files a folder gets.
        entries: dtype and shape of each tensor.
        metadata: with values as long as the final ones; see `TensorWriter`.
    """
    if out.suffix == ".safetensors":
        with files.whole(out) as partial, TensorWriter(partial, entries, metadata) as writer:
            yield Output(dict.fromkeys(entries, writer))
        return
    with _whole_folder(out) as partial, ExitStack() as stack:
        writers: dict[str, TensorWriter] = {}
        shards: dict[str, str] = {}
        for file in base.files:
            name = _shard_name(file.path.name)
            inside = {key: entry for key, entry in entries.items() if base.holders[key] is file}
            writer = stack.enter_context(TensorWriter(partial / name, inside, metadata))
            writers |= dict.fromkeys(inside, writer)
            shards |= dict.fromkeys(inside, name)
        yield Output(writers)
        if base.index is not None:
            size = sum({id(writer): writer.size for writer in writers.values()}.values())
            content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(shards.items()))}
            (partial / _index_name(base.index.name)).write_text(json.dumps(content, indent=2) + "\n")
        folder = base.path if base.path.is_dir() else base.index.parent if base.index else None
        for path in sorted(folder.iterdir()) if folder else ():
            if path.is_file() and path.name[0] != "." and path.name != RECORD and not _is_weights(path):
                shutil.copy2(path, partial / path.name)
        _state_dtype(partial / "config.json", {entries[name].dtype for name in writers})
        record = {"files": sorted(path.name for path in partial.iterdir()), **next(iter(writers.values())).metadata}
        (partial / RECORD).write_text(json.dumps(record, indent=1) + "\n")


def _state_dtype(config: Path, dtypes: set[torch.dtype]) -> None:
    """Let a config.json that names the dtype of the weights name that of the merged ones."""
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
    """A temporary folder beside `path` that takes its place when the block ends well.

    Folders cannot be exchanged in one step; what a power cut between the two leaves is put back by the next merge.
    """
    path = Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.with_name(f".old-{path.name}")
    if old.exists() and not path.exists():
        old.rename(path)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", suffix=f"-{path.name}", dir=path.parent))
    partial.chmod(0o777 & ~_umask())
    try:
        yield partial
        for file in partial.iterdir():
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
