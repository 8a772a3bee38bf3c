"""The batch sampler and the image datasets, whose draws do not depend on processes, workers or interruptions."""

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

CACHE_BYTES = 64 << 20  # of transformed images, kept from one evaluation to the next


class Draw(NamedTuple):
    """One training sample as drawn by the sampler.

    The weights are such that Σ weight · loss, averaged over the ranks, is the mean loss of the global batch.
    """

    sample: int
    epoch: int
    weight: float


class KeyedBatchSampler(Sampler[list[Draw]]):
    """The batches of one rank, from a shuffle that is keyed by (seed, task, epoch).

    The shuffled samples are cut into global batches, and each global batch is dealt out to the ranks, so every rank
    has the same number of batches. If the last global batch has fewer samples than there are ranks, some ranks get a
    sample of weight 0 instead, so that no rank waits for a gradient that never comes.

    Args:
        indices: positions in the split that belong to the task, int64 [N].
        batch_size: samples in a global batch, all ranks together.
        key_parts: key of the shuffle, without the epoch.
        rank, world_size: this process among all.
    """

    def __init__(
        self, indices: np.ndarray, batch_size: int, key_parts: tuple[int | str, ...], rank: int = 0, world_size: int = 1
    ):
        self.indices, self.batch_size, self.key_parts = indices, batch_size, key_parts
        self.rank, self.world_size = rank, world_size
        self.epoch = self.first_batch = 0

    @property
    def sampler(self) -> KeyedBatchSampler:
        """The sampler itself, because Lightning calls ``set_epoch`` only on the `sampler` of a batch sampler."""
        return self

    def start_at(self, epoch: int, batch: int = 0) -> None:
        """Start at this batch of this epoch; all other epochs are complete."""
        self.epoch, self.first_batch = epoch, batch

    def set_epoch(self, epoch: int) -> None:
        """Start a new epoch; Lightning calls this before each."""
        if epoch != self.epoch:
            self.start_at(epoch)

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = self.indices[permutation(len(self.indices), *self.key_parts, self.epoch)].tolist()
        for start in range(self.first_batch * self.batch_size, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            weight = self.world_size / len(batch)
            mine = [Draw(sample, self.epoch, weight) for sample in batch[self.rank :: self.world_size]]
            yield mine or [Draw(batch[0], self.epoch, 0.0)]


class TrainImages(Dataset):
    """Training samples (image, label, weight), augmented with random draws that are keyed by the sample.

    Args:
        split: images and labels.
        transform: PIL image → tensor [3, H, W]; may draw from torch's global generator.
        key_parts: key of the draws, without the epoch and the sample.
    """

    def __init__(self, split: Split, transform: Callable[[Image.Image], Tensor], key_parts: tuple[int | str, ...]):
        self.split, self.transform, self.key_parts = split, transform, key_parts

    def __getitems__(self, draws: Sequence[Draw]) -> list[tuple[Tensor, int, float]]:
        # The fork keeps the transform's draws out of the generator that training uses; once per batch is cheaper.
        with torch.random.fork_rng(devices=[]):
            return [self[draw] for draw in draws]

    def __getitem__(self, draw: Draw) -> tuple[Tensor, int, float]:
        torch.default_generator.manual_seed(key(*self.key_parts, draw.epoch, draw.sample))
        return self.transform(self.split.images[draw.sample]), int(self.split.labels[draw.sample]), draw.weight


class EvalImages(Dataset):
    """Evaluation samples (image, label, task) at given positions of a split.

    Args:
        split: images and labels.
        transform: PIL image → tensor [3, H, W], without random draws.
        indices: positions in the split, int64 [N].
        tasks: task of each position, int64 [N].
        cache: transformed images by position in the split; new ones are added up to `CACHE_BYTES`.
    """

    def __init__(
        self,
        split: Split,
        transform: Callable[[Image.Image], Tensor],
        indices: np.ndarray,
        tasks: np.ndarray,
        cache: dict[int, Tensor],
    ):
        self.split, self.transform, self.indices, self.tasks, self.cache = split, transform, indices, tasks, cache

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int, int]:
        index = int(self.indices[position])
        image = self.cache.get(index)
        if image is None:
            image = self.transform(self.split.images[index])
            if image.nbytes * (len(self.cache) + 1) <= CACHE_BYTES:
                self.cache[index] = image
        return image, int(self.split.labels[index]), int(self.tasks[position])
