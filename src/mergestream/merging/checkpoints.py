"""Checkpoints: a file, or a folder of shards with an index; and what two of them must share."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Protocol

import torch

from mergestream.merging.tensors import Entry, TensorFile, bytes_of
from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_json, sha256
from mergestream.strategies.task_vectors import CHUNK

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
OTHER = ("training_args", "optimizer", "scheduler", "rng_state")  # files that a Trainer writes beside the weights


class Source(Protocol):
    """What a checkpoint and an adapter have in common."""

    path: Path
    metadata: dict[str, str]
    entries: dict[str, Entry]


class Checkpoint:
    """The tensors of a file, or of the shards of a folder.

    Args:
        path: a file of weights, the index of a sharded checkpoint (``….index.json``), or a folder with one of these.

    Raises:
        UserError: if there is no such checkpoint, or a file of it is missing or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.index: Path | None = None
        found = _weights_of(path) if path.is_dir() else path
        if found.name.endswith(".index.json"):
            mapping = read_json(found, "weight_map")["weight_map"]
            if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
                raise UserError(f"{found} must map tensors to files in its weight_map")
            names = sorted(set(mapping.values()))
            if any(Path(name).name != name for name in names):
                raise UserError(f"{found} must name files beside it; it names {names[0]}")
            files = {name: TensorFile(found.parent / name) for name in names}
            self.files, self.index = list(files.values()), found
            self.holders = {name: files[shard] for name, shard in mapping.items()}
            if missing := sorted(name for name, file in self.holders.items() if name not in file.entries):
                raise UserError(f"{found} lists {missing[0]}, but {mapping[missing[0]]} does not hold it")
        else:
            self.files = [TensorFile(found)]
            self.holders = dict.fromkeys(self.files[0].entries, self.files[0])
        self.entries: dict[str, Entry] = {name: file.entries[name] for name, file in self.holders.items()}
        self.stored: dict[str, str] = {}  # names in the files, where they are others
        self.metadata = {key: value for file in self.files for key, value in file.metadata.items()}

    def read(self, name: str, start: int, target: memoryview) -> None:
        """Fill the bytes `target` with the tensor's elements from `start`."""
        self.holders[name].read(self.stored.get(name, name), start, target)

    def adopt_names(self, base: Checkpoint, say: Callable[[str], None]) -> None:
        """Rename the tensors to those of `base` where all names of one of the two share a prefix, such as ``module.``.

        Args:
            base: the base.
            say: gets the prefix.
        """
        ours, theirs = base.entries.keys(), self.entries.keys()
        best, renamed, message = len(ours & theirs), {}, ""
        for prefix in _prefixes(theirs):
            names = {name.removeprefix(prefix): name for name in theirs}
            if (common := len(ours & names.keys())) > best:
                best, renamed, message = common, names, f"the prefix {prefix} of {self.path} is stripped"
        for prefix in _prefixes(ours):
            names = {prefix + name: name for name in theirs}
            if (common := len(ours & names.keys())) > best:
                best, renamed, message = common, names, f"{self.path} is read with the prefix {prefix} of {base.path}"
        if renamed:
            say(message)
            self.stored = renamed
            self.holders = {name: self.holders[stored] for name, stored in renamed.items()}
            self.entries = {name: self.entries[stored] for name, stored in renamed.items()}

    def add_name(self, name: str, other: str) -> None:
        """Make the tensor `other` readable as `name` too."""
        self.stored[name] = self.stored.get(other, other)
        self.holders[name], self.entries[name] = self.holders[other], self.entries[other]

    def remove_name(self, name: str) -> None:
        """Forget a tensor."""
        del self.holders[name], self.entries[name]

    def config(self) -> dict[str, Any]:
        """Return the config.json of the model; empty if there is none beside the weights."""
        path = (self.path if self.path.is_dir() else self.path.parent) / "config.json"
        return read_json(path) if path.is_file() else {}

    def ties_embeddings(self) -> bool | None:
        """Return whether config.json says that the head is the embedding; None if it says nothing."""
        config = self.config()
        text = config.get("text_config")
        value = config.get("tie_word_embeddings", text.get("tie_word_embeddings") if isinstance(text, dict) else None)
        return value if isinstance(value, bool) else None

    def require_unquantised(self) -> None:
        """Check that config.json does not say that the weights are codes.

        Raises:
            UserError: if it does.
        """
        if quantised := self.config().get("quantization_config"):
            method = quantised.get("quant_method", "some method") if isinstance(quantised, dict) else quantised
            raise UserError(
                f"a merge needs weights that are not quantised; config.json says that {self.path} is quantised by "
                f"{method}. Load it with transformers, call model.dequantize() and save it."
            )

    def close(self) -> None:
        """Close the files."""
        for file in self.files:
            file.close()


def _weights_of(folder: Path) -> Path:
    """Return the index of a folder's shards, or its only file of weights; .safetensors take precedence."""
    for suffix in WEIGHTS:
        for pattern in (f"*{suffix}.index.json", f"*{suffix}"):
            found = sorted(p for p in folder.glob(pattern) if p.name[0] != "." and p.stem not in OTHER)
            if len(found) == 1:
                return found[0]
            if found:
                raise UserError(
                    f"{folder} must hold one checkpoint; it holds {found[0].name} and {found[1].name}. Name the file."
                )
    raise UserError(f"{folder} must hold a checkpoint, a file that ends in {', '.join(WEIGHTS)}; it holds none")


def _prefixes(names: Collection[str]) -> list[str]:
    """Return the prefixes of whole words that all names share, the shortest first."""
    if not names:
        return []
    common = os.path.commonprefix(list(names))  # noqa: RUF071 - names of tensors are not paths
    return [common[: at + 1] for at, letter in enumerate(common) if letter == "."]


def require_same_base(base: Checkpoint, checkpoint: Source) -> None:
    """Check that a checkpoint was trained from `base`, if its metadata say so.

    Raises:
        UserError: if it was trained from another one.
    """
    expected = checkpoint.metadata.get("base_sha256")
    if expected is not None and (base.index or sha256(base.files[0].path) != expected):
        raise UserError(
            f"a checkpoint belongs to the θ₀ that it was trained from; {checkpoint.path} was trained from another "
            f"one than base={base.path} (its metadata says base_sha256={expected})"
        )


def differences(base: Checkpoint, checkpoint: Source) -> dict[str, str]:
    """Return the tensors that differ in name, shape or kind of dtype, with the rule that each one breaks.

    Floating-point types may differ, because arithmetic is in float32.
    """
    found = {}
    for name in sorted(base.entries.keys() | checkpoint.entries.keys()):
        if name not in checkpoint.entries or name not in base.entries:
            lacking = base if name in checkpoint.entries else checkpoint
            found[name] = f"checkpoints must hold the tensors of their base; {lacking.path} has no {name}"
            continue
        ours, theirs = base.entries[name], checkpoint.entries[name]
        for what, here, there in (
            ("shapes", list(ours.shape), list(theirs.shape)),
            ("dtypes", ours.dtype, theirs.dtype),
        ):
            floats = ours.dtype.is_floating_point and theirs.dtype.is_floating_point
            if here != there and not (what == "dtypes" and (floats or name.endswith("num_batches_tracked"))):
                found[name] = (
                    f"checkpoints must have the {what} of their base; {name} is {here} in {base.path} and {there} in "
                    f"{checkpoint.path}"
                )
    return found


def same_content(one: Checkpoint, name: str, other: Checkpoint, other_name: str) -> bool:
    """Return whether two tensors are the same: dtype, shape and every byte."""
    entry, twin = one.entries[name], other.entries[other_name]
    if (entry.dtype, entry.shape) != (twin.dtype, twin.shape):
        return False
    for start in range(0, entry.numel, CHUNK):
        ours, theirs = torch.empty(2, min(CHUNK, entry.numel - start), dtype=entry.dtype)
        one.read(name, start, bytes_of(ours))
        other.read(other_name, start, bytes_of(theirs))
        if bytes_of(ours) != bytes_of(theirs):
            return False
    return True


def require_same_integers(base: Checkpoint, checkpoint: Checkpoint, names: Iterable[str]) -> None:
    """Check that integer tensors of several elements, such as the codes of quantised weights, are equal.

    A single integer may differ: it is a counter, and stays as it is in the base.

    Raises:
        UserError: if they differ.
    """
    for name in names:
        entry = base.entries[name]
        if entry.dtype.is_floating_point or entry.numel < 2 or entry.dtype != checkpoint.entries[name].dtype:
            continue
        if not same_content(base, name, checkpoint, name):
            raise UserError(
                f"integers cannot be merged, so they must be equal; {name}, {entry.dtype}, differs between "
                f"{base.path} and {checkpoint.path}. Convert quantised weights to floating point first."
            )
