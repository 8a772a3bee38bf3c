"""The base class of continual-learning methods."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import pytorch_lightning as pl
from torch import Tensor, nn

from mergestream.models.clip import TextHead
from mergestream.runtime.rules import require_choice

Batches = Iterable[tuple[Tensor, Tensor]]  # (images, class ids)

STARTS = ("previous", "base", "merged")
DATA = ("task", "all", "none")


class Method(pl.Callback):
    """A continual-learning method: where each task starts and which data it trains on.

    A method is also a Lightning callback: subclasses add behaviour in its hooks and in the ones below.

    Args:
        id: name of the method in the run directory.
        start: ``previous`` fine-tunes task t from θ_{t−1} (sequential), ``base`` from θ₀ (independent), ``merged`` from
            the merge of the first t−1 tasks by the training's ``strategy`` and ``lambda`` (Dziadzio et al. 2025).
        data: ``task`` trains on one task after another, ``all`` on all data as a single task (joint), ``none`` does not
            train (zero-shot).

    Raises:
        UserError: if `start` or `data` is none of these.
    """

    # Whether `penalty` is a sum over samples with their weights (true), or of the encoder alone, so that it counts once
    # in a batch of several parts (false). A method with a penalty that does not say works without ``accumulate``.
    weighs_samples: bool | None = None

    @property
    def allows_parts(self) -> bool:
        """Whether a batch can be divided into parts."""
        return self.weighs_samples is not None or type(self).penalty is Method.penalty

    def __init__(self, id: str, start: str = "previous", data: str = "task"):
        require_choice("method.start", start, STARTS)
        require_choice("method.data", data, DATA)
        self.id, self.start, self.data = id, start, data

    def penalty(self, encoder: nn.Module, images: Tensor, features: Tensor, weights: Tensor) -> Tensor | None:
        """Return the term to add to the loss of a batch, or None.

        Args:
            encoder: the image tower that is being trained.
            images: the batch, [B, 3, H, W].
            features: output of the encoder for the batch, [B, D].
            weights: weight of each sample in the mean over the global batch, [B]; see `KeyedBatchSampler`.
        """
        return None

    def consolidate(self, encoder: nn.Module, head: TextHead, classes: Sequence[int], batches: Batches) -> None:
        """Keep what later tasks need; called on every process after a task has been trained.

        Args:
            encoder: the image tower after the task, in evaluation mode, on the device of the process.
            head: text head over all classes.
            classes: class ids of the task.
            batches: this process's shard of the task's training images, (images, class ids), on the same device.
        """

    def facts(self) -> dict[str, object]:
        """Return what metrics.json records about the method in addition to its config."""
        return {}

    def state(self) -> dict[str, Tensor]:
        """Return the tensors to save with a task, for `restore`."""
        return {}

    def restore(self, state: Mapping[str, Tensor], encoder: nn.Module, head: TextHead, classes: Sequence[int]) -> None:
        """Restore the state after a finished task; called in place of `consolidate` when a run is resumed.

        Args:
            state: what `state` returned after the task.
            encoder: the image tower after the task.
            head: text head over all classes.
            classes: class ids of the task.
        """
