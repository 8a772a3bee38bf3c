"""The stream: the LightningDataModule that serves one task at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mergestream.data.sampling import EvalImages, KeyedBatchSampler, TrainImages
from mergestream.data.source import Source
from mergestream.data.tasks import Task
from mergestream.models.clip import Transforms
from mergestream.runtime.seeding import key


class TaskStream(pl.LightningDataModule):
    """T tasks, one at a time: iterate over it, and the train loader serves the task of the iteration.

    Args:
        source: the dataset.
        tasks: its tasks, in order.
        transforms: image transforms for training and for evaluation.
        batch_size: samples in a global training batch, all processes together.
        seed: keys the shuffle and the augmentation.
        num_workers: worker processes per loader; the result does not depend on it.
    """

    def __init__(
        self,
        source: Source,
        tasks: Sequence[Task],
        transforms: Transforms,
        *,
        batch_size: int,
        seed: int,
        num_workers: int = 0,
    ):
        super().__init__()
        self.source, self.tasks, self.transforms = source, list(tasks), transforms
        self.batch_size, self.seed, self.num_workers = batch_size, seed, num_workers
        self.current = 0
        self._kept: dict[str, dict[int, Tensor]] = {"test": {}, "validation": {}}  # images as they are evaluated
        self._position = (0, 0)  # epoch, and batches of it, where the next training begins

    def __len__(self) -> int:
        return len(self.tasks)

    def __iter__(self) -> Iterator[Task]:
        for index, task in enumerate(self.tasks):
            self.current = index
            yield task

    def joined(self) -> TaskStream:
        """The same data as a stream of one task that holds everything."""

        def union(field: str) -> np.ndarray:
            return np.unique(np.concatenate([getattr(task, field) for task in self.tasks]))

        classes = sorted(set().union(*(task.classes for task in self.tasks)))
        task = Task("all", classes, union("train"), union("validation"), union("test"))
        return TaskStream(
            self.source,
            [task],
            self.transforms,
            batch_size=self.batch_size,
            seed=self.seed,
            num_workers=self.num_workers,
        )

    def state_dict(self) -> dict[str, int]:
        """Where the training is: the epoch, and how many of its batches are done."""
        assert self.trainer is not None
        epoch, done = self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1
        whole = done >= self.trainer.num_training_batches
        return {"epoch": epoch + 1, "batch": 0} if whole else {"epoch": epoch, "batch": done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """The next train loader begins there."""
        self._position = (state["epoch"], state["batch"])

    def train_dataloader(self) -> DataLoader:
        """Batches (images [B, 3, H, W], labels [B], weights [B]) of the current task, for this process."""
        (epoch, batch), self._position = self._position, (0, 0)
        return self._train_loader(epoch, batch)

    def consolidation_dataloader(self) -> DataLoader:
        """One more pass over the current task with draws of its own, such as a Fisher is measured on."""
        return self._train_loader(epoch=-1)

    def _train_loader(self, epoch: int, batch: int = 0) -> DataLoader:
        parts = (self.seed, self.current)
        samples = self.tasks[self.current].train
        batches = KeyedBatchSampler(samples, self.batch_size, (*parts, "shuffle"), *self._rank())
        batches.begin(epoch, batch)
        images = TrainImages(self.source.train, self.transforms.train, (*parts, "augmentation"))
        return DataLoader(images, batch_sampler=batches, **self._loader_options())

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """The current task's validation samples for this process; nothing where ``stream.validation`` is 0."""
        if not len(self.tasks[self.current].validation):
            return []
        return self.eval_dataloader("validation", *self._rank(), only=self.current)

    def eval_dataloader(
        self, split: str = "test", rank: int = 0, world_size: int = 1, only: int | None = None
    ) -> DataLoader:
        """Batches (images, labels, tasks) over a split, each sample once over all processes.

        Args:
            split: test or validation.
            rank, world_size: this process takes every `world_size`-th sample; nothing is padded.
            only: one task; None is all of them.
        """
        positions = [getattr(task, split) for t, task in enumerate(self.tasks) if only in (None, t)]
        tasks = np.repeat(np.arange(len(self.tasks)) if only is None else [only], [len(p) for p in positions])
        shard = slice(rank, None, world_size)
        samples = self.source.test if split == "test" else self.source.train
        return DataLoader(
            EvalImages(
                samples, self.transforms.eval, np.concatenate(positions)[shard], tasks[shard], self._kept[split]
            ),
            batch_size=max(1, min(256, 2 * self.batch_size)),
            **self._loader_options(),
        )

    def describe(self) -> dict[str, Any]:
        """What ``stream.json`` records: classes and sample counts of each task, and a hash of each split's indices."""
        names = self.source.class_names
        return {
            "num_classes": self.source.num_classes,
            "class_order": list(dict.fromkeys(c for task in self.tasks for c in task.classes)),
            **({"notes": dict(self.source.notes)} if self.source.notes else {}),
            "tasks": [
                {
                    "name": task.name,
                    "classes": task.classes,
                    "class_names": [names[c] for c in task.classes],
                    **{s: len(getattr(task, s)) for s in ("train", "validation", "test")},
                    **{f"{s}_sha256": _hash(getattr(task, s)) for s in ("train", "validation", "test")},
                }
                for task in self.tasks
            ],
        }

    def _rank(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader_options(self) -> dict[str, Any]:
        return {
            "num_workers": self.num_workers,
            "persistent_workers": self.num_workers > 0,
            # Keeps the loader from drawing its base seed from the global generator that training uses.
            "generator": torch.Generator().manual_seed(key(self.seed)),
        }


def _hash(indices: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(indices, dtype="<i8").tobytes()).hexdigest()
