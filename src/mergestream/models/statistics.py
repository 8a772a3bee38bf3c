"""The running statistics of batch normalisation, measured again on given images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def measured_statistics(encoder: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the running means and variances of an encoder on some images, from one pass over them.

    Only the layers of batch normalisation are in training mode. A statistic is the average of those of the batches,
    weighted by their sizes, so that every image counts the same. The encoder itself keeps them, and ends in evaluation
    mode.

    Args:
        encoder: image tower.
        batches: images [B, 3, H, W], on its device.

    Returns:
        The statistics on the CPU, named as in the encoder's state.
    """
    layers = {name: m for name, m in encoder.named_modules() if getattr(m, "running_mean", None) is not None}
    momenta = {name: layer.momentum for name, layer in layers.items()}
    encoder.eval()
    seen = 0
    try:
        for layer in layers.values():
            layer.reset_running_stats()
            layer.train()
        for images in batches:
            seen += len(images)
            for layer in layers.values():
                layer.momentum = len(images) / seen
            encoder(images)
    finally:
        encoder.eval()
        for name, layer in layers.items():
            layer.momentum = momenta[name]
    return {
        f"{name}.{kind}": getattr(layer, kind).detach().cpu().clone()
        for name, layer in layers.items()
        for kind in ("running_mean", "running_var")
    }
