"""Evaluation of encoders: counts of correct predictions per task and class, from one pass over a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from mergestream.data.stream import TaskStream
from mergestream.metrics import Counts
from mergestream.models.clip import Clip, TextHead
from mergestream.models.statistics import measured_statistics
from mergestream.runtime import processes
from mergestream.runtime.precision import autocast

Observer = Callable[[Tensor, Tensor], None]  # of logits [B, C] and class ids [B]


class TaskAccuracy(Metric):
    """Counts of correct predictions per task and per class (see `Counts`), summed exactly over batches and processes.

    Args:
        task_classes: class ids of each task.
        num_classes: columns of the logits.
        seen: number of tasks that count as seen.
    """

    full_state_update = False
    allowed_TC: Tensor
    seen_C: Tensor
    total: Tensor
    agnostic: Tensor
    aware: Tensor
    seen_correct: Tensor
    class_total: Tensor
    class_correct: Tensor

    def __init__(self, task_classes: Sequence[Sequence[int]], num_classes: int, seen: int):
        super().__init__()
        allowed_TC = torch.zeros(len(task_classes), num_classes, dtype=torch.bool)
        for row, classes in zip(allowed_TC, task_classes, strict=True):
            row[list(classes)] = True
        self.seen = seen
        self.register_buffer("allowed_TC", allowed_TC, persistent=False)
        self.register_buffer("seen_C", allowed_TC[:seen].any(0), persistent=False)
        for name in ("total", "agnostic", "aware", "seen_correct"):
            self.add_state(name, torch.zeros(len(task_classes), dtype=torch.long), dist_reduce_fx="sum")
        for name in ("class_total", "class_correct"):
            self.add_state(name, torch.zeros(num_classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits_BC: Tensor, labels_B: Tensor, tasks_B: Tensor) -> None:
        """Add the counts of a batch: logits [B, C], class ids [B], tasks [B]."""

        def count(correct_B: Tensor) -> Tensor:
            return torch.bincount(tasks_B[correct_B], minlength=len(self.total))

        def correct(allowed: Tensor) -> Tensor:
            return logits_BC.masked_fill(~allowed, -torch.inf).argmax(-1) == labels_B

        self.total += torch.bincount(tasks_B, minlength=len(self.total))
        right_B = logits_BC.argmax(-1) == labels_B
        self.agnostic += count(right_B)
        self.class_total += torch.bincount(labels_B, minlength=len(self.class_total))
        self.class_correct += torch.bincount(labels_B[right_B], minlength=len(self.class_correct))
        self.aware += count(correct(self.allowed_TC[tasks_B]))
        if self.seen:
            self.seen_correct += count(correct(self.seen_C) & (tasks_B < self.seen))

    def compute(self) -> Counts:
        """Return the counts of all batches and processes."""
        return {
            "total": self.total.tolist(),
            "agnostic": self.agnostic.tolist(),
            "aware": self.aware.tolist(),
            "seen_correct": self.seen_correct.tolist(),
            "class_total": self.class_total.tolist(),
            "class_correct": self.class_correct.tolist(),
        }


@torch.no_grad()  # not inference_mode, which would make weights moved to the device here untrainable
def evaluate(
    encoder: nn.Module,
    head: TextHead,
    stream: TaskStream,
    *,
    seen: int,
    device: torch.device,
    precision: str = "32-true",
    split: str = "test",
    only: int | None = None,
    observe: Observer | None = None,
) -> Counts:
    """Evaluate an encoder on all tasks of a stream, sharded over all processes.

    Args:
        encoder: image tower; it stays on `device` in evaluation mode.
        head: text head over all classes.
        stream: the tasks and their data.
        seen: number of tasks that the encoder has been trained on.
        device: where to compute.
        precision: of the encoder; the head always has that of its weights.
        split: test or validation.
        only: index of a single task; by default all tasks.
        observe: also called with the logits and labels of each batch of this process.
    """
    encoder.to(device).eval()
    head.to(device)
    metric = TaskAccuracy([task.classes for task in stream.tasks], stream.source.num_classes, seen).to(device)
    batches = stream.eval_dataloader(split, *processes.shard(), only)
    for images, labels, tasks in stream.on_device(batches, device):
        with autocast(device, precision):
            features = encoder(images)
        logits = head(features)
        metric.update(logits, labels, tasks)
        if observe is not None:
            observe(logits, labels)
    return metric.compute()


@dataclass(frozen=True)
class Evaluator:
    """Evaluates encoders on one stream.

    Args:
        clip: the model whose image tower takes the weights to evaluate.
        head: text head over all classes of the stream.
        stream: the tasks and their data.
        device: where to compute.
        precision: of the encoder.
    """

    clip: Clip
    head: TextHead
    stream: TaskStream
    device: torch.device
    precision: str = "32-true"

    @property
    def preprocessing(self) -> dict[str, Any]:
        """How evaluation images are made; see `Run.require_preprocessing`."""
        return {**self.clip.preprocessing, "short_side": self.stream.loading.short_side}

    def counts(
        self,
        theta: Mapping[str, Tensor],
        seen: int,
        split: str = "test",
        only: int | None = None,
        observe: Observer | None = None,
    ) -> Counts:
        """Evaluate the image tower with the weights `theta`; for the other arguments see `evaluate`."""
        self.clip.encoder.load_state_dict(theta)
        return evaluate(
            self.clip.encoder,
            self.head,
            self.stream,
            seen=seen,
            device=self.device,
            precision=self.precision,
            split=split,
            only=only,
            observe=observe,
        )

    def confusion(self, theta: Mapping[str, Tensor]) -> np.ndarray:
        """Return the numbers of test images by class and predicted class, int64 [C, C], among all classes."""
        count = self.stream.source.num_classes
        matrix_CC = torch.zeros(count * count, dtype=torch.long, device=self.device)

        def add(logits: Tensor, labels: Tensor) -> None:
            matrix_CC.add_(torch.bincount(labels * count + logits.argmax(-1), minlength=count * count))

        self.counts(theta, 0, observe=add)
        return matrix_CC.view(count, count).cpu().numpy()

    def statistics(self, theta: Mapping[str, Tensor], seen: int) -> dict[str, Tensor]:
        """Return the running statistics that the weights `theta` have on the training images of the first tasks."""
        self.clip.encoder.load_state_dict(theta)
        encoder = self.clip.encoder.to(self.device)
        batches = self.stream.on_device(self.stream.statistics_dataloader(seen), self.device)
        return measured_statistics(encoder, (images for images, *_ in batches))
