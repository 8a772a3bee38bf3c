"""What some strategies weigh an encoder with, from the images of its own task: Fisher information, Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mergestream.methods.ewc import fisher_diagonal
from mergestream.methods.method import Batches
from mergestream.models.clip import TextHead
from mergestream.runtime import processes


def fisher(encoder: nn.Module, head: TextHead, classes: Sequence[int], batches: Batches) -> dict[str, Tensor]:
    """Return the diagonal of the Fisher information of a task by parameter name, over its own classes.

    One class is drawn for each image from what the encoder predicts, so the estimate has no bias.

    Args:
        encoder: the image tower after the task, in evaluation mode.
        head: text head over all classes.
        classes: class ids of the task.
        batches: this process's share of the images, (images, class ids).
    """
    found = fisher_diagonal(nn.Sequential(encoder, head.restrict(classes)).eval(), batches, estimator="sample")
    return {name.removeprefix("0."): tensor for name, tensor in found.items()}


@torch.no_grad()
def input_grams(encoder: nn.Module, batches: Batches) -> dict[str, Tensor]:
    """Return XᵀX of every linear layer, [in, in], by the name of its weight; X has a row for each token of each image.

    Args:
        encoder: the image tower after the task, in evaluation mode.
        batches: this process's share of the images, (images, class ids).
    """
    names = {id(p): name for name, p in encoder.named_parameters() if p.dim() == 2}
    grams: dict[str, Tensor] = {}

    def add(inputs: Tensor, weight: Tensor) -> None:
        if name := names.get(id(weight)):
            rows = inputs.reshape(-1, inputs.shape[-1]).float()
            gram = rows.T @ rows
            grams[name] = grams[name] + gram if name in grams else gram

    with _every_linear(add):
        for images, _ in batches:
            if len(images):  # a process may have no images of a small last batch
                encoder(images)
    # A process without an image knows no layer, but must join in the sums.
    used = sorted({name for text in processes.gathered("\n".join(grams)) for name in (text or "").split("\n") if name})
    widths = {name: p.shape[1] for name, p in encoder.named_parameters() if name in used}
    where = next(encoder.parameters()).device
    return {
        name: processes.total(grams.get(name, torch.zeros(widths[name], widths[name], device=where))) for name in used
    }


def first_batches(batches: Iterable[Any], samples: int, batch_size: int) -> Iterator[Any]:
    """Yield the first global batches that have `samples` samples together."""
    return islice(iter(batches), -(-samples // batch_size))


OUTPUT = slice(11, 13)  # weight and bias of the output layer among the arguments of torch's attention


class _Linear(TorchFunctionMode):
    """Calls a function with the inputs and the weight of every linear layer, also of those inside of attention."""

    def __init__(self, add: Callable[[Tensor, Tensor], None]):
        super().__init__()
        self.add = add

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            self.add(args[0], args[1])
        elif func is F.multi_head_attention_forward:
            return self._attention(func, list(args), kwargs or {})
        return func(*args, **(kwargs or {}))

    def _attention(self, attend: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        query, key, value, in_projection = *args[:3], args[5]
        if query is key is value and in_projection is not None:
            self.add(query, in_projection)
        weight, bias = args[OUTPUT]
        # The identity as output layer gives the inputs of the real one.
        args[OUTPUT] = torch.eye(len(weight.T), dtype=weight.dtype, device=weight.device), None
        heads, attention = attend(*args, **kwargs)
        self.add(heads, weight)
        return F.linear(heads, weight, bias), attention


@contextmanager
def _every_linear(add: Callable[[Tensor, Tensor], None]) -> Iterator[None]:
    """Watch every linear layer; the fused attention of evaluation, in which they are hidden, is off meanwhile."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _Linear(add):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
