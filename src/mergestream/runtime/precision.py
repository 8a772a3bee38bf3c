"""The precision that a device computes in: what it can do, what pays, and the context that applies it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from mergestream.runtime.errors import UserError

LARGE = 20_000_000  # parameters; smaller models lose more by conversions than they gain


def choose(device: torch.device, parameters: int) -> tuple[str, str]:
    """Return the precision that ``auto`` means for a model of this size on this device, and why.

    bf16-mixed is chosen for a large model where the hardware multiplies bfloat16 matrices: on a GPU from compute
    capability 8, and on a CPU with AMX or AVX512-BF16.
    """
    if parameters < LARGE:
        return "32-true", "the model is small"
    if device.type == "cuda":
        fast = torch.cuda.get_device_capability(device)[0] >= 8
        name = torch.cuda.get_device_name(device)
        return ("bf16-mixed", f"{name} multiplies bfloat16 fast") if fast else ("32-true", f"{name} does not")
    if not _cpu_multiplies_bfloat16():
        return "32-true", "this CPU has neither AMX nor AVX512-BF16"
    return (
        "bf16-mixed",
        f"this CPU multiplies bfloat16 fast, and the model is large ({parameters / 1e6:.0f} M parameters)",
    )


def require_possible(key: str, precision: str, device: torch.device, *, training: bool) -> None:
    """Check that a device can compute in a precision.

    Args:
        key: of the config, for the message.
        precision: 32-true, bf16-mixed or 16-mixed.
        device: where to compute.
        training: whether gradients are computed; those of 16-mixed need a scaler, which a CPU lacks.

    Raises:
        UserError: if it cannot.
    """
    if precision == "16-mixed" and training and device.type != "cuda":
        raise UserError(f"{key}=16-mixed needs a GPU; here it is {device.type}. Write {key}=bf16-mixed or 32-true.")
    if precision == "bf16-mixed" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        name = torch.cuda.get_device_name(device)
        raise UserError(
            f"{key}=bf16-mixed needs a GPU with bfloat16; {name} has none. Write {key}=16-mixed or 32-true."
        )


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """Return the context in which a forward pass has this precision."""
    if precision == "32-true":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16-mixed" else torch.float16)


def _cpu_multiplies_bfloat16() -> bool:
    names = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)
