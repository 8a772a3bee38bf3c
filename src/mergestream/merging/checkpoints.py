"""Checkpoints: a file, a folder of shards with an index, or a LoRA adapter on a base."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from mergestream.merging.tensors import Entry, TensorFile, is_finite
from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_json, read_tensors, sha256
from mergestream.strategies.task_vectors import CHUNK

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
OTHER = ("training_args", "optimizer", "scheduler", "rng_state")  # files that a Trainer writes beside the weights
ADAPTER_CONFIG = "adapter_config.json"


class Checkpoint:
    """The tensors of a file, or of the shards of a folder.

    Args:
        path: a file of weights, the index of a sharded checkpoint (``….index.json``), or a folder with one of these.

    Raises:
        UserError: if there is no such checkpoint, or a file of it is missing or damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        found = _weights_of(path) if path.is_dir() else path
        if found.name.endswith(".index.json"):
            mapping = read_json(found, "weight_map")["weight_map"]
            if not isinstance(mapping, dict) or not all(isinstance(name, str) for name in mapping.values()):
                raise UserError(f"{found} must map tensors to files in its weight_map")
            names = sorted(set(mapping.values()))
            if any(Path(name).name != name for name in names):
                raise UserError(f"{found} must name files beside it; it names {names[0]}")
            self.files = [TensorFile(found.parent / name) for name in names]
            self.index: Path | None = found
        else:
            self.files, mapping = [TensorFile(found)], None
            self.index = None
        self.holders = {name: file for file in self.files for name in file.entries}
        if mapping is not None and (missing := sorted(mapping.keys() - self.holders.keys())):
            raise UserError(f"{found} lists {missing[0]}, but {mapping[missing[0]]} does not hold it")
        self.entries: dict[str, Entry] = {name: file.entries[name] for name, file in self.holders.items()}
        self.metadata = {key: value for file in self.files for key, value in file.metadata.items()}

    def read(self, name: str, start: int, target: memoryview) -> None:
        """Fill the bytes `target` with the tensor's elements from `start`."""
        self.holders[name].read(name, start, target)

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


class Adapter:
    """A LoRA adapter (Hu et al. 2022) that peft saved: the task vector τ = s · B A of the weights that it changes.

    Args:
        path: its folder.
        base: the checkpoint that it was trained on.

    Raises:
        UserError: if it is damaged, is not a plain low-rank update, or does not fit the base.
    """

    def __init__(self, path: Path, base: Checkpoint):
        self.path = path
        self.metadata: dict[str, str] = {}
        self.entries = base.entries
        self.factors: dict[str, tuple[float, Tensor, Tensor]] = {}  # weight → scale, B, A
        self.full: dict[str, Tensor] = {}  # weights that the adapter holds as a whole
        config, file = _read_config(path), _weights_of_adapter(path)
        self.digest = xxhash.xxh3_128_hexdigest(file.read_bytes())
        tensors = {name.removeprefix("base_model.model."): tensor for name, tensor in read_tensors(file).items()}
        for name, tensor in tensors.items():
            if not is_finite(tensor):
                raise UserError(f"checkpoints must be finite; {name} in {file} has NaN or infinite values")
            module, factor, _ = name.partition(".lora_")
            if not factor:
                weight = self._weight(name, tensor.shape, base)
                self.full[weight] = tensor.float()
            elif name not in (f"{module}.lora_A.weight", f"{module}.lora_B.weight"):
                raise UserError(f"{file} must hold only low-rank updates of linear layers; it has {name}")
            elif f"{module}.weight" not in self.factors:
                B, A = _factors(tensors, module, file)
                if config.get("fan_in_fan_out"):
                    A, B = B.T, A.T
                weight = self._weight(f"{module}.weight", torch.Size((len(B), A.shape[1])), base)
                self.factors[weight] = (_scale(config, module, B.shape[1]), B, A)

    def _weight(self, name: str, shape: torch.Size, base: Checkpoint) -> str:
        """Return the base's name for a weight of the adapter, whose update has this shape."""
        weight = name.replace(".base_layer", "").replace(".modules_to_save", "")
        if weight not in base.entries:
            raise UserError(
                f"{self.path} changes {weight}, which {base.path} does not have; is it an adapter of another model?"
            )
        if tuple(shape) != base.entries[weight].shape:
            raise UserError(
                f"{weight} is {list(base.entries[weight].shape)} in {base.path}, and its update in {self.path} is "
                f"{list(shape)}"
            )
        return weight

    def task_vector(self, name: str, start: int, base: Tensor, out: Tensor) -> None:
        """Fill `out`, float32 [n], with elements of τ.

        Args:
            name: the weight.
            start: position of the first element, a multiple of `CHUNK`.
            base: the same elements of θ₀, float32 [n].
            out: the target.
        """
        if name in self.full:
            torch.sub(self.full[name].reshape(-1)[start : start + len(out)], base, out=out)
        elif name in self.factors:
            scale, B, A = self.factors[name]
            width = A.shape[1]
            for first in range(start, start + len(out), CHUNK):  # a product must not depend on the size of the block
                piece = out[first - start : first - start + CHUNK]
                row = first // width
                rows = B[row : (first + len(piece) - 1) // width + 1].double() @ A.double()
                piece.copy_(scale * rows.view(-1)[first - row * width :][: len(piece)])
        else:
            out.zero_()

    def close(self) -> None:
        """Release the memory."""
        self.factors.clear()


def _read_config(path: Path) -> dict[str, Any]:
    """Return the config of an adapter, which must be a plain LoRA adapter."""
    config = read_json(path / ADAPTER_CONFIG, "peft_type", "r", "lora_alpha")
    wrong = {key: config.get(key) for key in ("use_dora", "bias") if config.get(key) not in (None, False, "none")}
    if config["peft_type"] != "LORA" or wrong:
        raise UserError(f"{path} must be a plain LoRA adapter; it is {config['peft_type']} with {wrong or 'r'}")
    return config


def _weights_of_adapter(path: Path) -> Path:
    for suffix in WEIGHTS:
        if (file := path / f"adapter_model{suffix}").is_file():
            return file
    raise UserError(f"{path} must hold adapter_model.safetensors; it does not")


def _factors(tensors: Mapping[str, Tensor], module: str, file: Path) -> tuple[Tensor, Tensor]:
    """Return B [m, r] and A [r, n] of a module."""
    A, B = (tensors.get(f"{module}.lora_{letter}.weight") for letter in "AB")
    if A is None or B is None:
        raise UserError(f"{file} must hold both factors of {module}; it has no lora_{'B' if B is None else 'A'}")
    if A.dim() != 2 or B.dim() != 2 or B.shape[1] != len(A):
        raise UserError(
            f"{file}: the factors of {module} must be [r, n] and [m, r]; got {list(A.shape)} and {list(B.shape)}"
        )
    return B, A


def _scale(config: dict[str, Any], module: str, r: int) -> float:
    """Return α / r, or α / √r for rsLoRA, with the exceptions that the config makes for single modules."""
    alpha = _pattern(config.get("alpha_pattern"), module, config["lora_alpha"])
    if not isinstance(alpha, (int, float)):
        raise UserError(f"{ADAPTER_CONFIG} must give a number for lora_alpha; got {alpha}")
    rank = _pattern(config.get("rank_pattern"), module, config["r"])
    if rank != r:
        raise UserError(f"{ADAPTER_CONFIG} gives {module} the rank {rank}, but its factors have {r}")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _pattern(patterns: dict[str, float] | None, module: str, default: float) -> float:
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def open_checkpoint(path: Path, base: Checkpoint) -> Checkpoint | Adapter:
    """Open a fine-tuned checkpoint, or an adapter if `path` is a folder with an adapter_config.json or a file in it."""
    folder = path if path.is_dir() else path.parent
    if (folder / ADAPTER_CONFIG).is_file() and (path.is_dir() or path.stem == "adapter_model"):
        return Adapter(folder, base)
    return Checkpoint(path)


def require_same_base(base: Checkpoint, checkpoint: Checkpoint | Adapter) -> None:
    """Check that a checkpoint was trained from `base`, if its metadata tell.

    Raises:
        UserError: if it was trained from another one.
    """
    expected = checkpoint.metadata.get("base_sha256")
    if expected is not None and (base.index or sha256(base.files[0].path) != expected):
        raise UserError(
            f"a checkpoint belongs to the θ₀ that it was trained from; {checkpoint.path} was trained from another "
            f"one than base={base.path} (its metadata says base_sha256={expected})"
        )


def differences(base: Checkpoint, checkpoint: Checkpoint | Adapter) -> dict[str, str]:
    """Return the tensors that differ in name, shape or dtype, with the rule that each one breaks."""
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
            if here != there:
                found[name] = (
                    f"checkpoints must have the {what} of their base; {name} is {here} in {base.path} and {there} in "
                    f"{checkpoint.path}"
                )
    return found
