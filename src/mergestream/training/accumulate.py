"""The gradient of a batch from its parts, so that only one part is in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Part = tuple[Tensor, ...]


def accumulated(
    loss_of: Callable[..., tuple[Tensor, Tensor]],
    parts: Sequence[Part],
    parameters: Iterable[nn.Parameter],
    scale: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the sum of the losses of all parts, and of a second number of each.

    The loss comes with its gradient. Its one backward pass hands that out, so hooks on the parameters, as those of DDP,
    run once for the whole batch.

    Args:
        loss_of: ``loss_of(*part, first)`` returns the loss and the other number.
        parts: of the batch, whose losses add up to its loss.
        parameters: those that get a gradient.
        scale: scales a loss before its gradient is taken, as 16-mixed does.
    """
    trained = [p for p in parameters if p.requires_grad]
    gradients: list[Tensor | None] = [None] * len(trained)
    losses, others = [], []
    for number, part in enumerate(parts):
        loss, other = loss_of(*part, first=number == 0)
        with torch.autocast(loss.device.type, enabled=False):
            found = torch.autograd.grad(loss if scale is None else scale(loss), trained, allow_unused=True)
        torch.clear_autocast_cache()  # its copies of the weights belong to the graph that is gone
        gradients = [_sum(old, new) for old, new in zip(gradients, found, strict=True)]
        losses.append(loss.detach())
        others.append(other)
    total = torch.stack(losses).sum()
    factor = torch.ones_like(total) if scale is None else scale(torch.ones_like(total))
    return _Known.apply(total, factor, gradients, *trained), torch.stack(others).sum()


def _sum(old: Tensor | None, new: Tensor | None) -> Tensor | None:
    """Return the sum of two gradients, in the memory of the first; None is the gradient of a weight without effect."""
    return new if old is None else old if new is None else old.add_(new)


class _Known(torch.autograd.Function):
    """A number whose gradients are known, times a factor."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, factor: Tensor, gradients: list[Any], *parameters: Tensor) -> Tensor:
        ctx.factor, ctx.gradients = factor, gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor | None, ...]:
        share = outer / ctx.factor
        return (None, None, None, *(None if g is None else g.mul_(share) for g in ctx.gradients))
