"""Which samples make a batch and what their augmentation draws, independent of processes, workers and interruptions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from mergestream.data.source import Split
from mergestream.runtime.seeding import key, permutation

KEPT = 64 << 20  # bytes of transformed images that are worth keeping from one evaluation to the next


class Draw(NamedTuple):
    """One training sample as the sampler orders it.

    `weight` makes the sum of weight · loss, averaged over the ranks, the mean loss of the global batch.
    """

    sample: int
    epoch: int
    weight: float


class KeyedBatchSampler(Sampler[list[Draw]]):
    """Batches of one rank: a shuffle keyed by (seed, task, epoch), cut into global batches, dealt out to the ranks.

    Every rank gets the same number of batches. A last global batch with fewer samples than ranks leaves some ranks
    without one; they get a sample of weight 0, so that no rank waits for a gradient that never comes.

    Args:
        indices: positions in the split that belong to the task, int64 [N].
        batch_size: samples in a global batch, all ranks together.
        parts: what the shuffle is keyed by, besides the epoch.
        rank, world_size: this process among all.
    """

    def __init__(
        self, indices: np.ndarray, batch_size: int, parts: tuple[int | str, ...], rank: int = 0, world_size: int = 1
    ):
        self.indices, self.batch_size, self.parts = indices, batch_size, parts
        self.rank, self.world_size = rank, world_size
        self.epoch = self.done = 0

    @property
    def sampler(self) -> KeyedBatchSampler:
        """Itself: Lightning sets the epoch of a batch sampler's `sampler`, and of nothing else."""
        return self

    def begin(self, epoch: int, batch: int = 0) -> None:
        """Start with this batch of this epoch; every other epoch is whole."""
        self.epoch, self.done = epoch, batch

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.begin(epoch)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self.indices[permutation(len(self.indices), *self.parts, self.epoch)].tolist()
        for start in range(self.done * self.batch_size, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            weight = self.world_size / len(batch)
            mine = [Draw(sample, self.epoch, weight) for sample in batch[self.rank :: self.world_size]]
            yield mine or [Draw(batch[0], self.epoch, 0.0)]


class TrainImages(Dataset):
    """Training samples (image, label, weight); the transform draws from a generator keyed by the sample.

    Args:
        split: images and labels.
        transform: PIL image → tensor [3, H, W]; may draw from torch's global generator.
        parts: what the draws are keyed by, besides the epoch and the sample.
    """

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor], parts: tuple[int | str, ...]):
        self.split, self.transform, self.parts = split, transform, parts

    def __getitems__(self, draws: Sequence[Draw]) -> list[tuple[Tensor, int, float]]:
        # Forked once a batch: the draws of the transform leave no trace in the state that training uses.
        with torch.random.fork_rng(devices=[]):
            return [self[draw] for draw in draws]

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, float]:
        torch.default_generator.manual_seed(key(*self.parts, draw.epoch, draw.sample))
        return self.transform(self.split.images[draw.sample]), int(self.split.labels[draw.sample]), draw.weight


class EvalImages(Dataset):
    """Evaluation samples (image, label, task) at the given positions of a split.

    Args:
        split: images and labels.
        transform: PIL image → tensor [3, H, W], without random draws.
        indices: positions in the split, int64 [N].
        tasks: task of each of them, int64 [N].
        kept: transformed images by position in the split, which is added to up to 64 MB.
    """

    def __init__(
        self,
        split: Split,
        transform: Callable[[Image.Image], Tensor],
        indices: np.ndarray,
        tasks: np.ndarray,
        kept: dict[int, Tensor],
    ):
        self.split, self.transform, self.indices, self.tasks, self.kept = split, transform, indices, tasks, kept

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        index = int(self.indices[position])
        image = self.kept.get(index)
        if image is None:
            image = self.transform(self.split.images[index])
            if image.nbytes * (len(self.kept) + 1) <= KEPT:
                self.kept[index] = image
        return image, int(self.split.labels[index]), int(self.tasks[position])
