"""What a method decides: where each task starts, which data it sees, and, in a subclass, what happens in between."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
from torch import Tensor, nn

from mergestream.models.clip import TextHead
from mergestream.runtime.errors import UserError

Batches = Iterable[tuple[Tensor, Tensor]]

STARTS = ("previous", "base")
DATA = ("task", "all", "none")


class Method(pl.Callback):
    """A continual-learning method. It is a Lightning callback, so a subclass adds behaviour in hooks.

    Args:
        id: name of the method in the run directory; a subclass with hyper-parameters puts them into it.
        start: ``previous`` fine-tunes task t from θ_{t−1} (sequential), ``base`` from θ₀ (independent).
        data: ``task`` sees one task after another, ``all`` sees everything as one task (joint), ``none`` trains
            nothing (zero-shot).
    """

    def __init__(self, id: str, start: str = "previous", data: str = "task"):
        for key, value, options in (("start", start, STARTS), ("data", data, DATA)):
            if value not in options:
                raise UserError(f"method.{key} must be one of {', '.join(options)}; got method.{key}={value}")
        self.id, self.start, self.data = id, start, data

    def penalty(self, encoder: nn.Module, images: Tensor, features: Tensor, weights: Tensor) -> Tensor | None:
        """What is added to the loss of a batch; None is nothing.

        Args:
            encoder: the image tower in training.
            images: the batch, [B, 3, H, W].
            features: its output for them, [B, D].
            weights: of each sample in the mean over the global batch, [B]; see `KeyedBatchSampler`.
        """
        return None

    def consolidate(self, encoder: nn.Module, head: TextHead, classes: Sequence[int], batches: Batches) -> None:
        """Called on every process when a task has been trained, to keep what later tasks need of it.

        Args:
            encoder: the image tower after the task, on its device, in evaluation mode.
            head: text head over all classes.
            classes: class ids of the task.
            batches: this process's shard of the task's training images, (images, class ids), on the device.
        """

    def facts(self) -> dict[str, Any]:
        """What metrics.json says of the method, besides its config."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs besides the encoder, to be saved with the task."""
        return {}

    def restore(self, state: Mapping[str, Tensor], encoder: nn.Module, head: TextHead, classes: Sequence[int]) -> None:
        """Called instead of `consolidate` for a task that an earlier process has finished."""
