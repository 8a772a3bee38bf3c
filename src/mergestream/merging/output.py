"""Where a merge is written: one file, or a folder like the base's with the same shards and its side files."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from torch import Tensor

from mergestream import files
from mergestream.errors import UserError
from mergestream.merging.checkpoints import WEIGHTS, Checkpoint
from mergestream.merging.tensors import Entry, TensorWriter

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
    elif out.is_dir() and any(out.iterdir()) and not (out / RECORD).is_file():
        raise UserError(f"out must be a new folder, or one that a merge wrote; out={out} holds other files")


@contextmanager
def output(
    out: Path, base: Checkpoint, entries: Mapping[str, Entry], metadata: Mapping[str, str]
) -> Iterator[Output]:
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
        writers = {}
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
        if base.path.is_dir():
            for path in sorted(base.path.iterdir()):
                if path.is_file() and not path.name.startswith(".") and not _is_weights(path) and path.name != RECORD:
                    shutil.copy2(path, partial / path.name)
        (partial / RECORD).write_text(json.dumps(dict(next(iter(writers.values())).metadata), indent=1) + "\n")


@contextmanager
def _whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its place when the block ends well."""
    path = Path(os.path.abspath(path))
    partial = path.with_name(f".partial-{os.getpid()}-{path.name}")
    old = path.with_name(f".old-{os.getpid()}-{path.name}")
    partial.mkdir(parents=True)
    try:
        yield partial
        for file in partial.iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _shard_name(name: str) -> str:
    stem, suffix = name.rsplit(".", 1)
    return name if suffix == "safetensors" else f"{stem.replace('pytorch_model', 'model')}.safetensors"


def _index_name(name: str) -> str:
    return f"{_shard_name(name.removesuffix('.index.json'))}.index.json"


def _is_weights(path: Path) -> bool:
    return path.suffix in WEIGHTS or path.name.endswith(".index.json")
