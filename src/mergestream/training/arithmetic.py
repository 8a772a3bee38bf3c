"""How a run computes: the precision and the compiler that ``auto`` stands for, decided once for each run."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from mergestream.compose.training import FitSettings, TrainingSettings
from mergestream.runs.directory import AUTO
from mergestream.runtime.errors import UserError, first_line
from mergestream.runtime.precision import LARGE, choose, require_possible

KEYS = ("precision", "eval_precision", "compile")


def adopt(settings: TrainingSettings) -> TrainingSettings:
    """Replace each ``auto`` by what the run was begun with, if it was begun."""
    if not (settings.run.path / "config.yaml").is_file():
        return settings
    return _with(settings, **{key: settings.run.decided(key) for key in KEYS if getattr(settings.fit, key) == AUTO})


def decide(settings: TrainingSettings, device: torch.device, encoder: nn.Module) -> tuple[TrainingSettings, list[str]]:
    """Replace each ``auto`` that is left by what suits the device and the model.

    Args:
        settings: of the run.
        device: of this process.
        encoder: the image tower.

    Returns:
        The settings, and a line for each choice that is not the plain one.

    Raises:
        UserError: if the device cannot do what the settings say.
    """
    said: list[str] = []
    parameters = sum(p.numel() for p in encoder.parameters())
    if settings.fit.precision == AUTO:
        precision, why = choose(device, parameters)
        settings = _with(settings, precision=precision)
        said += [f"precision=auto takes {precision}: {why}"] * (precision != "32-true")
    precision = settings.fit.precision
    if settings.fit.eval_precision == AUTO:
        settings = _with(settings, eval_precision=precision)
    require_possible("precision", precision, device, training=settings.method.data != "none")
    require_possible("eval_precision", settings.fit.eval_precision, device, training=False)
    if settings.fit.fused and precision == "16-mixed":
        raise UserError(
            "optimizer.fused=true unscales the gradients of 16-mixed after they are clipped; write optimizer.fused=null"
        )
    return _with_compiler(settings, device, parameters, said), said


def _with_compiler(
    settings: TrainingSettings, device: torch.device, parameters: int, said: list[str]
) -> TrainingSettings:
    """Decide whether to compile, and add what was decided to `said`."""
    wish = settings.fit.compile
    pays = device.type == "cuda" and settings.fit.precision != "32-true" and parameters >= LARGE
    if not wish or (wish == AUTO and not pays):
        return _with(settings, compile=False)
    fault = compiler_fault(device)
    if fault is not None and wish != AUTO:
        raise UserError(f"compile=true needs a compiler that torch.compile can use: {fault}. Write compile=false.")
    if wish == AUTO:
        said.append("compile=auto compiles the image tower" if fault is None else f"compile=auto does not: {fault}")
    return _with(settings, compile=fault is None)


def optimizer_of(fit: FitSettings) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return the optimizer, fused under bf16-mixed unless the config says otherwise.

    A fused step rounds differently, so 32-true keeps the plain one; 16-mixed needs it to clip its gradients.
    """
    plain: Any = fit.optimizer
    fusible = "fused" in inspect.signature(plain).parameters and not plain.keywords.get("foreach")
    return partial(plain, fused=True) if fusible and fit.fused is None and fit.precision == "bf16-mixed" else plain


def set_matrix_precision(device: torch.device, precision: str) -> None:
    """Let a GPU multiply float32 matrices in TF32 under a mixed precision, and in full under 32-true."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "32-true" else "high")


def channels_last_pays(encoder: nn.Module, device: torch.device, precision: str) -> bool:
    """Return whether an encoder is faster with the channels of its images last: convolutions in 16 bits on a GPU.

    A ViT has a single convolution, which cuts the patches.
    """
    convolutions = sum(isinstance(module, nn.Conv2d) for module in encoder.modules())
    return device.type == "cuda" and precision != "32-true" and convolutions > 1


@contextmanager
def activation_checkpointing(encoder: Any, wanted: bool) -> Iterator[None]:
    """Within the block, compute the activations of each layer again instead of keeping them, if that is wanted.

    Outside of training it must be off: the Fisher of EWC is taken by transforms that do not support it.
    """
    if not wanted:
        yield
        return
    encoder.set_grad_checkpointing(True)
    try:
        yield
    finally:
        encoder.set_grad_checkpointing(False)


def require_checkpointing(encoder: nn.Module) -> None:
    """Check that an encoder can compute activations again, with the same results.

    Raises:
        UserError: if it cannot: batch normalisation would count each batch twice, and other towers have no layers to
            compute again.
    """
    normalised = any(isinstance(module, _BatchNorm) for module in encoder.modules())
    can = hasattr(encoder, "set_grad_checkpointing") and not normalised
    if can:
        with activation_checkpointing(encoder, True):  # open_clip's ResNet accepts it and does nothing
            can = any(getattr(module, "grad_checkpointing", False) for module in encoder.modules())
    if not can:
        raise UserError(
            f"activation_checkpointing=true needs an image tower of transformer blocks; {type(encoder).__name__} "
            "has none. Write activation_checkpointing=false, and accumulate=4 to save memory."
        )


def compiler_fault(device: torch.device) -> str | None:
    """Return why torch.compile fails on a device, from a function of one line; None if it works."""
    try:
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
    except Exception as error:  # of the compiler, of triton, or of the toolchain below them
        return first_line(error)
    return None


def _with(settings: TrainingSettings, **values: Any) -> TrainingSettings:
    """Return settings with other values of `fit`, in the config for the record too."""
    return replace(settings, fit=replace(settings.fit, **values), config={**settings.config, **values})
