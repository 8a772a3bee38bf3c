"""LoRA adapters of peft: the task vector of each weight that an adapter changes, as peft merges it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor

from mergestream.merging.checkpoints import WEIGHTS, Checkpoint
from mergestream.merging.tensors import bytes_of, is_finite
from mergestream.merging.tied_weights import Ties, may_be_tied
from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_json, read_metadata, read_tensors
from mergestream.strategies.task_vectors import CHUNK

ADAPTER_CONFIG = "adapter_config.json"
# Initialisations that leave the base as it is. The others subtract their first B A from it, or quantise it.
KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")
# Fields of the config that change what the factors mean, and that are not computed here.
OTHER_UPDATES = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# Models of transformers whose layers of these names are Conv1D, which holds the transposed matrix.
CONV1D_MODELS = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer", "clvp", "clvp_decoder")
CONV1D_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")
NAME = re.compile(
    r"(?P<module>.+)\.lora_(?P<kind>A|B|embedding_A|embedding_B|magnitude_vector)"
    r"(?:\.(?!weight$|bias$)[^.]+)?(?:\.(?P<leaf>weight|bias))?"
)
TOKENS = ".token_adapter.trainable_tokens_delta"


@dataclass
class Update:
    """The change s · B A of one weight, and what DoRA makes of it.

    Args:
        scale: s.
        B: [m, r].
        A: [r, n].
        transposed: whether the weight is stored as [n, m].
        factors: DoRA's magnitude over norm for each of the m outputs, float64; None for plain LoRA.
    """

    scale: float
    B: Tensor
    A: Tensor
    transposed: bool
    factors: Tensor | None = None

    def rows(self, first: int, last: int) -> Tensor:
        """Return rows of s · B A in the orientation of the weight, float64."""
        left, right = (self.A.T, self.B.T) if self.transposed else (self.B, self.A)
        return self.scale * (left[first:last].double() @ right.double())

    def factors_of(self, first: int, last: int) -> Tensor:
        """Return the factors of rows, to multiply with them."""
        assert self.factors is not None
        return self.factors[None, :] if self.transposed else self.factors[first:last, None]


class Adapter:
    """A LoRA adapter (Hu et al. 2022) that peft saved: the task vector τ = s · B A of the weights that it changes.

    DoRA (Liu et al. 2024), embeddings, biases, trainable tokens, and modules that are saved whole are computed too.

    Args:
        path: its folder.
        base: the checkpoint that it was trained on.
        ties: the names that are tied in it.
        say: gets a message if the adapter names another base.

    Raises:
        UserError: if it is damaged, if its update is of a kind that is not computed, or if it does not fit the base.
    """

    def __init__(self, path: Path, base: Checkpoint, ties: Ties, say: Callable[[str], None]):
        self.path, self.base, self.ties = path, base, ties
        self.entries = base.entries
        self.updates: dict[str, Update] = {}
        self.full: dict[str, Tensor] = {}  # tensors that the adapter holds as a whole, float32
        self.dropped: list[Tensor] = []  # those of tied names that the base leaves out
        self.added: dict[str, Tensor] = {}  # changes of biases, float32
        self.tokens: dict[str, tuple[list[int], Tensor]] = {}  # rows that replace those of an embedding
        self.modules: dict[str, str] = {}  # the name under which a weight is changed
        self.config = _read_config(path)
        self.model_type = base.config().get("model_type")
        self.file = _weights_of_adapter(path)
        # Files of mergestream say which base they belong to.
        self.metadata = read_metadata(self.file) if self.file.suffix == ".safetensors" else {}
        config = json.dumps(self.config, sort_keys=True).encode()  # has the scale of the updates
        self.digest = xxhash.xxh3_128_hexdigest(config + self.file.read_bytes())
        self._say_other_base(say)
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in read_tensors(self.file).items():
            name = key.removeprefix("base_model.model.")
            if not is_finite(tensor):
                raise UserError(f"checkpoints must be finite; {name} in {self.file} has NaN or infinite values")
            if name.endswith(TOKENS) or f"{TOKENS}." in name:
                self._add_tokens(name.partition(TOKENS)[0], tensor)
            elif (found := NAME.fullmatch(name)) and (found["kind"] in "AB") == (found["leaf"] is not None):
                kind = found["kind"] if found["leaf"] != "bias" else f"{found['kind']}.bias"
                parts.setdefault(found["module"], {})[kind] = tensor
            elif found and found["kind"] == "magnitude_vector":
                parts.setdefault(found["module"], {})["magnitude_vector"] = tensor
            elif ".lora_" in name:
                raise UserError(f"{self.file} must hold only low-rank updates that peft can merge; it has {name}")
            else:
                self._add_full(name, tensor)
        self._tie_full()
        for module, tensors in parts.items():
            self._add_update(module, tensors)

    def task_vector(self, name: str, start: int, base: Tensor, out: Tensor) -> None:
        """Fill `out`, float32 [n], with elements of τ.

        Args:
            name: the weight.
            start: position of the first element, a multiple of `CHUNK`.
            base: the same elements of θ₀, float32 [n].
            out: the target.
        """
        end = start + len(out)
        own = self.full[name].reshape(-1)[start:end] if name in self.full else base
        if own is base:
            out.zero_()  # also where the base is infinite
        else:
            torch.sub(own, base, out=out)
        if name in self.updates:
            update, width = self.updates[name], self.base.entries[name].shape[-1]
            for first in range(start, end, CHUNK):  # a product must not depend on the size of the block
                piece = slice(first - start, min(first - start + CHUNK, len(out)))
                out[piece] = _updated(update, first, own[piece], out[piece], width)
        if name in self.added:
            out.add_(self.added[name].reshape(-1)[start:end])
        if name in self.tokens:
            self._replace_rows(name, start, base, out)

    def close(self) -> None:
        """Release the memory."""
        self.updates.clear()

    def _replace_rows(self, name: str, start: int, base: Tensor, out: Tensor) -> None:
        indices, rows = self.tokens[name]
        width = rows.shape[1]
        for index, row in zip(indices, rows, strict=True):
            first, last = max(index * width, start), min((index + 1) * width, start + len(out))
            if first < last:
                inside = slice(first - start, last - start)
                out[inside] = row[first - index * width : last - index * width] - base[inside]

    def _add_full(self, name: str, tensor: Tensor) -> None:
        plain = name.replace(".modules_to_save.", ".")
        if plain.replace(".base_layer", "") not in self.base.entries:  # with a name of the adapter behind it
            plain = re.sub(r"\.modules_to_save\.[^.]+\.", ".", name)
        if plain not in self.base.entries and self.base.ties_embeddings() and may_be_tied(plain):
            self.dropped.append(tensor.float())
        else:
            self.full[self._weight(plain, tensor.shape)] = tensor.float()

    def _add_tokens(self, module: str, rows: Tensor) -> None:
        wanted = self.config.get("trainable_token_indices")
        if isinstance(wanted, dict):
            wanted = next((value for key, value in wanted.items() if f".{module}".endswith(f".{key}")), None)
        if not isinstance(wanted, list) or len(wanted) != len(rows):
            raise UserError(
                f"{ADAPTER_CONFIG} must give trainable_token_indices for the {len(rows)} rows of {module}; got {wanted}"
            )
        name = self._changed(f"{module}.weight")
        if rows.dim() != 2 or rows.shape[1:] != self.base.entries[name].shape[1:]:
            raise UserError(f"{name} is {list(self.base.entries[name].shape)}, but its tokens are {list(rows.shape)}")
        self.tokens[name] = (wanted, rows.float())

    def _add_update(self, module: str, parts: Mapping[str, Tensor]) -> None:
        """Add the update of a layer, of an embedding, or of the query, key and value matrix of nn.MultiheadAttention.

        Raises:
            UserError: if it changes the output projection of attention, whose update peft, up to version 0.21, adds
                twice.
        """
        embedding = "embedding_A" in parts or "embedding_B" in parts
        B, A = _factors(parts, module, self.file, "embedding_" if embedding else "")
        attention, _, last = module.replace(".base_layer", "").rpartition(".")
        if last == "out_proj" and f"{attention}.in_proj_weight" in self.base.entries:
            if bool(B.any()) and bool(A.any()):
                raise UserError(f"{self.file} changes {attention}.out_proj, which peft adds twice; merge it with peft")
            return
        name = self._changed(self._matrix(module))
        shape = self.base.entries[name].shape
        transposed = embedding or self._is_transposed(module, name, (len(B), A.shape[1]))
        expected = (A.shape[1], len(B)) if transposed else (len(B), A.shape[1])
        self._weight(name, torch.Size(expected))
        update = Update(_scale(self.config, module, len(A)), B, A, transposed)
        if (bias := parts.get("B.bias")) is not None:
            self._weight(f"{module}.bias", bias.shape)
            self.added[self._changed(f"{module}.bias")] = update.scale * bias.float()
        if (magnitude := parts.get("magnitude_vector")) is not None:
            update.factors = magnitude.double().flatten() / self._norms(name, update, shape)
        elif self.config.get("use_dora"):
            raise UserError(f"{self.file} must hold the magnitude of {module}, since use_dora=true; it does not")
        self.updates[name] = update

    def _matrix(self, module: str) -> str:
        """Return the name of the matrix of a layer."""
        stacked = f"{module.replace('.base_layer', '')}.in_proj_weight"
        return stacked if stacked in self.base.entries else f"{module}.weight"

    def low_rank(self, name: str) -> tuple[Tensor, Tensor] | None:
        """Return B [m, r] and A [r, n], float32 with τ = B A for a weight [m, n]; None if its change is another one.

        A weight that the adapter does not change has r = 0.
        """
        if name in self.full or name in self.added or name in self.tokens:
            return None
        if (update := self.updates.get(name)) is None:
            rows, columns = self.base.entries[name].shape
            return torch.zeros(rows, 0), torch.zeros(0, columns)
        if update.factors is not None:
            return None
        B, A = (update.A.T, update.B.T) if update.transposed else (update.B, update.A)
        return update.scale * B.float(), A.float()

    def _is_transposed(self, module: str, name: str, update: tuple[int, int]) -> bool:
        """Return whether a weight is stored as [inputs, outputs], as in transformers' Conv1D."""
        shape = self.base.entries[name].shape
        if shape != update or shape != update[::-1]:
            return shape == update[::-1]
        layer = module.removesuffix(".base_layer").rpartition(".")[2]
        if self.model_type is not None:
            return self.model_type in CONV1D_MODELS and layer in CONV1D_LAYERS
        if self.config.get("fan_in_fan_out") or layer in CONV1D_LAYERS:
            raise UserError(
                f"{name} is square, and may belong to a Linear or a Conv1D layer; give base= as a folder with the "
                "config.json of the model"
            )
        return False

    def _norms(self, name: str, update: Update, shape: tuple[int, ...]) -> Tensor:
        """Return the norm of W + s · B A for each output of a layer, float64 [m]."""
        squares = torch.zeros(len(update.B), dtype=torch.float64)
        step = max(1, CHUNK // shape[1])
        raw = torch.empty(step * shape[1], dtype=self.base.entries[name].dtype)
        for first in range(0, shape[0], step):
            last = min(first + step, shape[0])
            values = raw[: (last - first) * shape[1]]
            if name in self.full:
                values = self.full[name][first:last].flatten()
            else:
                self.base.read(name, first * shape[1], bytes_of(values))
            changed = (values.double().view(-1, shape[1]) + update.rows(first, last)).square()
            if update.transposed:
                squares += changed.sum(0)
            else:
                squares[first:last] = changed.sum(1)
        return squares.sqrt()

    def _weight(self, name: str, shape: torch.Size | None) -> str:
        """Return the base's name for a weight of the adapter, whose update has this shape."""
        weight = name.replace(".base_layer", "")
        if weight not in self.base.entries:
            raise UserError(
                f"{self.path} changes {weight}, which {self.base.path} does not have; is it an adapter of another "
                "model?"
            )
        if shape is not None and tuple(shape) != self.base.entries[weight].shape:
            raise UserError(
                f"{weight} is {list(self.base.entries[weight].shape)} in {self.base.path}, and its update in "
                f"{self.path} is {list(shape)}"
            )
        return weight

    def _changed(self, name: str) -> str:
        """Return the first name of a weight that the adapter changes, as peft changes tied weights in place.

        Raises:
            UserError: if it changes a tied weight twice.
        """
        weight = self._weight(name, None)
        first = self.ties.names(weight)[0]
        if (other := self.modules.setdefault(first, weight)) != weight:
            raise UserError(
                f"{self.path} changes {other} and {weight}, which {self.base.path} ties; merge it with peft"
            )
        return first

    def _tie_full(self) -> None:
        """Keep whole tensors of tied names once.

        Raises:
            UserError: if the adapter untied them.
        """
        for first in {self.ties.names(name)[0] for name in self.full}:
            names = self.ties.names(first)
            given = [self.full.pop(name, None) for name in names]
            tensors = [self._of_base(name) if own is None else own for name, own in zip(names, given, strict=True)]
            if not all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
                raise UserError(
                    f"{self.path} unties {' and '.join(names)}, which {self.base.path} ties; merge it with peft first"
                )
            self.full[first] = tensors[0]
        embeddings = {name: tensor for name, tensor in self.full.items() if may_be_tied(name)}
        if not self.dropped and not self.ties.kept and self.base.ties_embeddings() and self._has_head():
            self.dropped = [self._of_base(name) for name in embeddings]
        if not all(any(torch.equal(own, tensor) for tensor in embeddings.values()) for own in self.dropped):
            raise UserError(
                f"{self.path} unties the embedding and the head, which the config.json of {self.base.path} ties; merge "
                "it with peft first"
            )

    def _has_head(self) -> bool:
        """Return whether the base is a language model rather than an encoder."""
        classes = self.base.config().get("architectures") or []
        return any(part in str(name) for name in classes for part in ("LM", "Generation"))

    def _of_base(self, name: str) -> Tensor:
        """Return a whole tensor of the base, float32."""
        entry = self.base.entries[name]
        raw = torch.empty(entry.shape, dtype=entry.dtype)
        self.base.read(name, 0, bytes_of(raw))
        return raw.float()

    def _say_other_base(self, say: Callable[[str], None]) -> None:
        """Say that the adapter names another base than the one given."""
        named = self.config.get("base_model_name_or_path")
        if not isinstance(named, str) or not named.strip("/"):
            return
        path = self.base.path.absolute()
        known = {part.rpartition("--")[2] for part in path.parts[-4:]} | {path.stem}
        known.add(str(self.base.config().get("_name_or_path", "")).rpartition("/")[2])
        if named.rstrip("/").rpartition("/")[2] not in known:
            say(f"{self.path} says that it was trained on {named}; it is merged into base={self.base.path}")


def open_checkpoint(path: Path, base: Checkpoint, ties: Ties, say: Callable[[str], None]) -> Checkpoint | Adapter:
    """Open a fine-tuned checkpoint, or an adapter if `path` is a folder with an adapter_config.json or a file in it."""
    folder = path if path.is_dir() else path.parent
    if (folder / ADAPTER_CONFIG).is_file() and (path.is_dir() or path.stem == "adapter_model"):
        return Adapter(folder, base, ties, say)
    return Checkpoint(path)


def _updated(update: Update, start: int, own: Tensor, tau: Tensor, width: int) -> Tensor:
    """Return elements of τ with the update; `own` is the weight that the factors add to, `tau` its difference to θ₀."""
    first, last = start // width, (start + len(own) - 1) // width + 1
    inside = slice(start - first * width, start - first * width + len(own))
    delta = update.rows(first, last)
    if update.factors is None:
        return tau + delta.view(-1)[inside]
    factors = update.factors_of(first, last).expand(last - first, width).reshape(-1)[inside]
    weight = own.double()
    return tau + factors * (weight + delta.view(-1)[inside]) - weight


def _read_config(path: Path) -> dict[str, Any]:
    """Return the config of an adapter whose updates can be computed."""
    config = read_json(path / ADAPTER_CONFIG, "peft_type", "r", "lora_alpha")
    if config["peft_type"] != "LORA":
        raise UserError(f"{path} must be a LoRA adapter; it is {config['peft_type']}. Merge it with peft first.")
    if wrong := [key for key in OTHER_UPDATES if config.get(key)]:
        raise UserError(f"{path} must be a LoRA adapter without {wrong[0]}; merge it with peft first")
    start = config.get("init_lora_weights", True)
    if isinstance(start, str) and start.lower() not in KEEPS_BASE:
        raise UserError(
            f"an adapter must start from its base; {path} has init_lora_weights={start}, which changes the base. "
            "Save it with save_pretrained(…, path_initial_model_for_weight_conversion=…), or merge it with peft first."
        )
    return config


def _weights_of_adapter(path: Path) -> Path:
    for suffix in WEIGHTS:
        if (file := path / f"adapter_model{suffix}").is_file():
            return file
    raise UserError(f"{path} must hold adapter_model.safetensors; it does not")


def _factors(parts: Mapping[str, Tensor], module: str, file: Path, kind: str) -> tuple[Tensor, Tensor]:
    """Return B [m, r] and A [r, n] of a module."""
    A, B = (parts.get(f"{kind}{letter}") for letter in "AB")
    if A is None or B is None:
        raise UserError(f"{file} must hold both factors of {module}; it has no lora_{kind}{'B' if B is None else 'A'}")
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
