"""One pass over a split with one encoder; everything that is reported comes from these logits."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from mergestream.data.stream import TaskStream
from mergestream.metrics import TaskAccuracy
from mergestream.models.clip import TextHead


@torch.no_grad()  # not inference_mode: moving the encoder here must leave weights that can be trained on
def evaluate(
    encoder: nn.Module,
    head: TextHead,
    stream: TaskStream,
    *,
    seen: int,
    device: torch.device,
    split: str = "test",
    only: int | None = None,
) -> dict[str, list[int]]:
    """Counts of correct predictions per task (see `TaskAccuracy`), over all processes, each sample once.

    Args:
        encoder: image tower; left in evaluation mode on `device`.
        head: text head over all classes.
        stream: whose tasks are evaluated.
        seen: how many tasks the encoder has been trained on.
        device: where to compute.
        split: test or validation.
        only: one task; None is all of them.
    """
    encoder.to(device).eval()
    head.to(device)
    distributed = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    metric = TaskAccuracy([task.classes for task in stream.tasks], stream.source.num_classes, seen).to(device)
    for images, labels, tasks in stream.eval_dataloader(split, rank, world_size, only):
        metric.update(head(encoder(images.to(device))), labels.to(device), tasks.to(device))
    return metric.compute()
