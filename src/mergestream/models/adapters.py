"""LoRA adapters of an image tower (Hu et al. 2022): W = W₀ + (α/r) · B A, of which A and B alone are trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from mergestream.runtime.errors import UserError
from mergestream.runtime.seeding import key

IN_PROJ = "in_proj"  # the target that stands for the stacked query, key and value matrix of nn.MultiheadAttention
PREFIX = "base_model.model."  # of every name in peft's files


@dataclass(frozen=True)
class LoRA:
    """Which matrices have an adapter, and of which size.

    Args:
        rank: r, at least 1.
        alpha: α, positive; the update is (α/r) · B A.
        targets: last names of linear layers, such as ``c_fc``, and `IN_PROJ`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]


class LowRank(nn.Module):
    """The update of one matrix, as a parametrization of torch.

    Args:
        weight: W₀ [m, n].
        lora: rank and scale.
    """

    def __init__(self, weight: Tensor, lora: LoRA):
        super().__init__()
        self.A = nn.Parameter(weight.new_zeros(lora.rank, weight.shape[1]))
        self.B = nn.Parameter(weight.new_zeros(weight.shape[0], lora.rank))
        self.scale = lora.alpha / lora.rank

    def forward(self, weight: Tensor) -> Tensor:
        """Return W₀ + (α/r) · B A, in the precision of W₀: 16-bit factors would round small updates away."""
        with torch.autocast(weight.device.type, enabled=False):
            return weight + self.scale * (self.B @ self.A)


@dataclass(frozen=True)
class Matrix:
    """A matrix that can have an adapter.

    Args:
        layer: that holds it.
        tensor: its name in the layer.
        target: what `LoRA.targets` calls it.
    """

    layer: nn.Module
    tensor: str
    target: str


def adapted(encoder: nn.Module, lora: LoRA) -> dict[str, Matrix]:
    """Return the matrices that get an adapter, by the name of their layer; the encoder stays as it is.

    Raises:
        UserError: if a target is none of the encoder's, the rank is above that of a matrix, or the encoder has batch
            normalisation, whose statistics no adapter holds.
    """
    if any(isinstance(module, _BatchNorm) for module in encoder.modules()):
        raise UserError(
            "model.adapter=lora needs an image tower without batch normalisation, whose statistics no adapter holds. "
            "Write model.adapter=null"
        )
    known = _matrices(encoder)
    targets = sorted({matrix.target for matrix in known.values()})
    if missing := [target for target in lora.targets if target not in targets]:
        raise UserError(
            f"model.adapter_targets must be layers of the image tower, which has {', '.join(targets) or 'none'}; got "
            f"{missing[0]}"
        )
    chosen = {name: matrix for name, matrix in known.items() if matrix.target in lora.targets}
    for name, matrix in chosen.items():
        shape = getattr(matrix.layer, matrix.tensor).shape
        if lora.rank > min(shape):
            raise UserError(
                f"model.adapter_rank must be at most {min(shape)}, since {name} is {list(shape)}; got "
                f"model.adapter_rank={lora.rank}"
            )
    return chosen


def _matrices(encoder: nn.Module) -> dict[str, Matrix]:
    """Return the matrices of all layers that peft can adapt, by the name of the layer.

    The output projection of attention is left out: peft, up to version 0.21, adds its update twice.
    """
    modules = dict(encoder.named_modules())
    found = {}
    for name, module in modules.items():
        parent, _, last = name.rpartition(".")
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            found[name] = Matrix(module, "in_proj_weight", IN_PROJ)
        elif isinstance(module, nn.Linear) and not isinstance(modules[parent], nn.MultiheadAttention):
            found[name] = Matrix(module, "weight", last)
    return found


def attach(encoder: nn.Module, lora: LoRA, seed: int) -> None:
    """Freeze an encoder and give it adapters, which change nothing yet.

    Args:
        encoder: image tower; changed in place.
        lora: which matrices, and how.
        seed: see `reset`.

    Raises:
        UserError: see `adapted`.
    """
    chosen = adapted(encoder, lora)
    encoder.requires_grad_(False)
    for matrix in chosen.values():
        weight = getattr(matrix.layer, matrix.tensor)
        parametrize.register_parametrization(matrix.layer, matrix.tensor, LowRank(weight, lora))
    reset(encoder, seed)


@torch.no_grad()
def reset(encoder: nn.Module, seed: int) -> None:
    """Start the adapters anew, as peft does: B = 0, and A uniform in ±1/√n.

    Args:
        encoder: with adapters.
        seed: of A; the draw of a matrix depends on its name, not on other matrices or the device.
    """
    for name, (_, update) in _updates(encoder).items():
        drawn = torch.empty(update.A.shape)
        generator = torch.Generator().manual_seed(key(seed, "adapter", name))
        nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
        update.A.copy_(drawn)
        update.B.zero_()


def _updates(encoder: nn.Module) -> dict[str, tuple[str, LowRank]]:
    """Return (name of the tensor, its update) by the name of the layer; empty without adapters."""
    return {
        name: (tensor, update)
        for name, module in encoder.named_modules()
        if parametrize.is_parametrized(module)
        for tensor, (update,) in module.parametrizations.items()
    }


@torch.no_grad()
def load_weights(encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Load the weights of a whole image tower; adapters that the encoder has then change nothing.

    Args:
        encoder: with or without adapters.
        weights: by their names without adapters.
    """
    state = dict(weights)
    for name, (tensor, update) in _updates(encoder).items():
        place = f"{name}.parametrizations.{tensor}"
        state[f"{place}.original"] = state.pop(f"{name}.{tensor}")
        state |= {f"{place}.0.A": update.A, f"{place}.0.B": torch.zeros_like(update.B)}
    encoder.load_state_dict(state)


def adapter_tensors(encoder: nn.Module) -> dict[str, Tensor]:
    """Return A and B of every adapter, float32, under the names of peft.

    An adapter of attention comes with zeros for its output projection, which peft expects beside it.
    """
    tensors: dict[str, Tensor] = {}
    for name, (tensor, update) in _updates(encoder).items():
        factors: dict[str, Tensor] = {f"{name}.lora_A": update.A, f"{name}.lora_B": update.B}
        if tensor == "in_proj_weight":
            width, rank = update.A.shape[1], len(update.A)
            output = f"{name}.base_layer.out_proj"
            factors |= {f"{output}.lora_A": torch.zeros(rank, width), f"{output}.lora_B": torch.zeros(width, rank)}
        tensors |= {f"{PREFIX}{factor}.weight": value.detach().float() for factor, value in factors.items()}
    return tensors


@torch.no_grad()
def load_adapter(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give an encoder the adapters that `adapter_tensors` returned."""
    for name, (_, update) in _updates(encoder).items():
        update.A.copy_(tensors[f"{PREFIX}{name}.lora_A.weight"])
        update.B.copy_(tensors[f"{PREFIX}{name}.lora_B.weight"])


def adapter_config(encoder: nn.Module, lora: LoRA) -> dict[str, Any]:
    """Return the content of peft's adapter_config.json for the adapters of an encoder."""
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(_updates(encoder)),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
    }
