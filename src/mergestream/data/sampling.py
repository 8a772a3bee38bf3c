"""The batch sampler of the training, whose order does not depend on processes, workers or interruptions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from mergestream.runtime.seeding import permutation


class Draw(NamedTuple):
    """One training sample as drawn by the sampler.

    The weights are such that Σ weight · loss, averaged over the ranks, is the mean loss of the global batch.
    """

    task: int
    epoch: int
    sample: int
    weight: float


class KeyedBatchSampler(Sampler[list[Draw]]):
    """The batches of one rank, from a shuffle that is keyed by (seed, task, epoch).

    The shuffled samples are cut into global batches, and each global batch is dealt out to the ranks, so every rank
    has the same number of batches. If the last global batch has fewer samples than there are ranks, some ranks get a
    sample of weight 0 instead, so that no rank waits for a gradient that never comes.

    Args:
        indices: positions in the split that belong to the task, int64 [N].
        batch_size: samples in a global batch, all ranks together.
        seed, task: key of the shuffle, with the epoch.
        rank, world_size: this process among all.
    """

    def __init__(
        self, indices: np.ndarray, batch_size: int, *, seed: int, task: int, rank: int = 0, world_size: int = 1
    ):
        self.indices, self.batch_size, self.seed, self.task = indices, batch_size, seed, task
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
        order = self.indices[permutation(len(self.indices), self.seed, self.task, "shuffle", self.epoch)].tolist()
        for start in range(self.first_batch * self.batch_size, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            weight = self.world_size / len(batch)
            mine = [Draw(self.task, self.epoch, sample, weight) for sample in batch[self.rank :: self.world_size]]
            yield mine or [Draw(self.task, self.epoch, batch[0], 0.0)]
