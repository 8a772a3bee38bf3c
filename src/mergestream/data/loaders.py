"""Loaders that work ahead of the training and keep evaluation images in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from mergestream.data.datasets import EvalImages, TrainImages
from mergestream.data.images import image_paths
from mergestream.data.sampling import Draw, KeyedBatchSampler
from mergestream.data.source import Source
from mergestream.runtime import processes

T = TypeVar("T")
AHEAD = 2  # batches that a thread, or each worker, prepares
MOST_WORKERS = 16


@dataclass(frozen=True)
class Loading:
    """How images are loaded. Only `augment` and `short_side` change a result.

    Args:
        augment: where training crops are resized: by pil in the loader, or in batches on the device.
        workers: loader processes of this process.
        keep: bytes of evaluation images that stay in memory.
        pin: whether batches are copied into page-locked memory.
        short_side: px to which the shorter side of larger images was reduced; None if it was not.
    """

    augment: str = "pil"
    workers: int = 0
    keep: int = 1 << 30
    pin: bool = False
    short_side: int | None = None

    @property
    def preprocessing(self) -> dict[str, Any]:
        """What of this changes a result, for the record; see `Run.require_preprocessing`."""
        return {"augment": self.augment, "short_side": self.short_side}


def spare_workers(source: Source, device: torch.device, on_device: bool) -> int:
    """Return the number of workers of ``data.num_workers=auto`` for this process.

    A thread loads where workers would compete with the training for the cores of a CPU, and where the images are in
    memory and the device resizes them. Otherwise every core that is left gets a worker.

    Args:
        source: the dataset.
        device: where the model is trained.
        on_device: whether the device resizes crops.
    """
    in_memory = next(chain(image_paths(source.train.images), image_paths(source.test.images)), None) is None
    if device.type == "cpu" or (in_memory and on_device):
        return 0
    return max(0, min(MOST_WORKERS, processes.share() - 1))


def ahead(batches: Iterable[T]) -> Iterator[T]:
    """Yield batches that a thread prepares while earlier ones are used."""
    source, end = iter(batches), object()
    with ThreadPoolExecutor(1, "loader") as pool:
        waiting: deque[Future[Any]] = deque(pool.submit(next, source, end) for _ in range(AHEAD))
        try:
            while (batch := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, source, end))
                yield batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class Relay(Sampler[list[Draw]]):
    """The batch sampler of workers that outlive a task: the batches of `current`."""

    current: KeyedBatchSampler

    def __iter__(self) -> Iterator[list[Draw]]:
        return iter(self.current)

    def __len__(self) -> int:
        return len(self.current)


class Workers:
    """Loads training batches in worker processes, which serve all tasks of a run, or in a thread if there are none.

    Args:
        images: the training images.
        count: worker processes; the batches do not depend on it.
        pin: whether to copy batches into page-locked memory, from which a GPU reads faster.
        options: further arguments of the `DataLoader`.
    """

    def __init__(self, images: TrainImages, count: int, pin: bool, **options: Any):
        self.relay = Relay()
        # A thread may load only what draws from generators of its own.
        self.threaded = not count and images.transforms.recipe is not None
        self.loader = DataLoader(
            images,
            batch_sampler=self.relay,
            collate_fn=unchanged,
            num_workers=count,
            persistent_workers=count > 0,
            prefetch_factor=AHEAD if count else None,
            pin_memory=pin,
            **options,
        )

    def batches(self, sampler: KeyedBatchSampler) -> Iterator[Any]:
        """Yield the batches of a sampler."""
        self.relay.current = sampler
        return ahead(self.loader) if self.threaded else iter(self.loader)


class TrainLoader:
    """The training batches of one task, each epoch in a new order.

    Lightning shuts the workers of a `DataLoader` down after each task, and knows nothing of those of this class.
    """

    def __init__(self, workers: Workers, batch_sampler: KeyedBatchSampler):
        self.workers, self.batch_sampler = workers, batch_sampler

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        return self.workers.batches(self.batch_sampler)


class Kept:
    """Evaluation images that stay in memory, up to a budget.

    Args:
        budget: bytes, of all splits together.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self.images: dict[tuple[str, int], Tensor] = {}  # by split and position

    def add(self, split: str, positions: Sequence[int], images: Tensor) -> None:
        """Keep a batch of images if the budget lasts."""
        if images.nbytes <= self.budget:
            self.budget -= images.nbytes
            # A copy, because workers send batches in shared memory, of which there can be little.
            self.images |= {(split, position): image for position, image in zip(positions, images.clone(), strict=True)}

    def get(self, split: str, positions: Sequence[int]) -> Tensor | None:
        """Return the images at these positions as one batch; None unless all are here."""
        found = [image for p in positions if (image := self.images.get((split, p))) is not None]
        return torch.stack(found) if len(found) == len(positions) else None

    def lacks(self, split: str, positions: Sequence[int]) -> bool:
        """Return whether any of these images is not here."""
        return any((split, position) not in self.images for position in positions)


class EvalLoader:
    """Evaluation batches (pixels, labels, tasks). An image is transformed once, if the budget lasts.

    Args:
        images: of the split.
        split: its name.
        kept: images of earlier passes.
        batches: positions of each batch in the split, int64 [B].
        tasks: task of each sample of each batch, int64 [B].
        options: arguments of the `DataLoader` for the images that are not kept.
    """

    def __init__(
        self,
        images: EvalImages,
        split: str,
        kept: Kept,
        batches: Sequence[np.ndarray],
        tasks: Sequence[np.ndarray],
        **options: Any,
    ):
        self.images, self.split, self.kept, self.options = images, split, kept, options
        self.positions = [batch.tolist() for batch in batches]
        self.tasks = [torch.from_numpy(of_batch) for of_batch in tasks]

    def __len__(self) -> int:
        return len(self.positions)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        fresh = [batch for batch in self.positions if self.kept.lacks(self.split, batch)]
        made = iter(DataLoader(self.images, batch_sampler=fresh, collate_fn=unchanged, **self.options) if fresh else ())
        for batch, tasks in zip(self.positions, self.tasks, strict=True):
            images = self.kept.get(self.split, batch)
            if images is None:
                images = next(made)
                self.kept.add(self.split, batch, images)
            yield images, torch.from_numpy(self.images.split.labels[batch]), tasks


def unchanged(batch: T) -> T:
    """Return a batch that the dataset has made whole."""
    return batch
