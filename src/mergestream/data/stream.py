"""The LightningDataModule that serves a stream of tasks, one at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor

from mergestream.data.crops import Crops, normalized
from mergestream.data.datasets import EvalImages, TrainImages
from mergestream.data.loaders import EvalLoader, Kept, Loading, TrainLoader, Workers
from mergestream.data.sampling import KeyedBatchSampler
from mergestream.data.source import Source
from mergestream.data.tasks import Task
from mergestream.models.transforms import Transforms
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError
from mergestream.runtime.seeding import key, permutation

STATISTICS_BATCH = 128  # images of a batch that statistics of batch normalisation are measured on, at most


class TaskStream(pl.LightningDataModule):
    """A stream of T tasks, whose train and validation loaders serve the task with index `current`.

    The loaders yield uint8 pixels; Lightning calls `on_after_batch_transfer`, and other loops `on_device`, to make them
    what the model takes.

    Args:
        source: the dataset.
        tasks: its tasks, in order.
        transforms: image transforms for training and evaluation.
        batch_size: samples in a global training batch, all processes together.
        seed: keys the shuffle and the augmentation.
        loading: how images are loaded.
        gone: indices of the tasks whose images are gone, by split (test or train); see `forgotten`.
    """

    def __init__(
        self,
        source: Source,
        tasks: Sequence[Task],
        transforms: Transforms,
        *,
        batch_size: int,
        seed: int,
        loading: Loading | None = None,
        gone: Mapping[str, Collection[int]] = MappingProxyType({}),
    ):
        super().__init__()
        self._gone = gone
        self.source, self.tasks, self.transforms = source, list(tasks), transforms
        self.batch_size, self.seed, self.loading = batch_size, seed, loading or Loading()
        self.current = 0
        self._kept = Kept(self.loading.keep)
        self._position = (0, 0)  # (epoch, batch) at which the next train loader starts

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def can_validate(self) -> bool:
        """Whether every task has validation images."""
        return all(len(task.validation) for task in self.tasks) and not self._gone.get("train")

    def joined(self) -> TaskStream:
        """Return the same data as a stream with a single task."""

        def union(field: str) -> np.ndarray:
            return np.unique(np.concatenate([getattr(task, field) for task in self.tasks]))

        classes = sorted(set().union(*(task.classes for task in self.tasks)))
        task = Task("all", classes, union("train"), union("validation"), union("test"))
        return TaskStream(
            self.source, [task], self.transforms, batch_size=self.batch_size, seed=self.seed, loading=self.loading
        )

    def state_dict(self) -> dict[str, int]:
        """Return the position of the training: the epoch, and how many of its batches are finished."""
        assert self.trainer is not None
        epoch, batch = self.trainer.current_epoch, self.trainer.fit_loop.batch_idx + 1
        epoch_finished = batch >= self.trainer.num_training_batches
        return {"epoch": epoch + 1, "batch": 0} if epoch_finished else {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Start the next train loader at a saved position."""
        self._position = (state["epoch"], state["batch"])

    def train_dataloader(self) -> TrainLoader:
        """Return this process's batches (pixels, labels [B], weights [B]) of the current task; see `TrainImages`."""
        (epoch, batch), self._position = self._position, (0, 0)
        return self._train_loader(epoch, batch)

    def consolidation_dataloader(self) -> TrainLoader:
        """Return one more pass over the current task, with random draws of its own, to estimate a Fisher on."""
        return self._train_loader(epoch=-1)

    def _train_loader(self, epoch: int, batch: int = 0) -> TrainLoader:
        rank, world_size = processes.shard()
        how = {"seed": self.seed, "task": self.current, "rank": rank, "world_size": world_size}
        batches = KeyedBatchSampler(self.tasks[self.current].train, self.batch_size, **how)
        batches.start_at(epoch, batch)
        return TrainLoader(self._workers, batches)

    @cached_property
    def _workers(self) -> Workers:
        resize = self.loading.augment == "pil"
        images = TrainImages(self.source.train, self.transforms, self.seed, resize=resize)
        return Workers(images, self.loading.workers, self.loading.pin, generator=self._generator())

    def val_dataloader(self) -> EvalLoader | list[EvalLoader]:
        """Return this process's validation batches of the current task; none if ``stream.validation`` is 0."""
        if not len(self.tasks[self.current].validation):
            return []
        return self.eval_dataloader("validation", *processes.shard(), only=self.current)

    def eval_dataloader(
        self, split: str = "test", rank: int = 0, world_size: int = 1, only: int | None = None
    ) -> EvalLoader:
        """Return batches (pixels, labels, tasks) of a split, without padding, so that no sample counts twice.

        Args:
            split: test or validation.
            rank, world_size: this process among all; it takes every `world_size`-th sample.
            only: index of a single task; by default all tasks.
        """
        gone = self._gone.get(split, ())
        chosen = [(t in gone, getattr(task, split)) for t, task in enumerate(self.tasks) if only in (None, t)]
        positions = [samples[:0] if is_gone else samples for is_gone, samples in chosen]
        tasks = np.repeat(np.arange(len(self.tasks)) if only is None else [only], [len(p) for p in positions])
        shard, size = slice(rank, None, world_size), max(1, min(256, 2 * self.batch_size))
        samples, tasks = np.concatenate(positions)[shard], tasks[shard]
        cuts = range(size, len(samples), size)
        return self._eval_loader(split, np.split(samples, cuts), np.split(tasks, cuts))

    def statistics_dataloader(self, seen: int) -> EvalLoader:
        """Return batches (images, labels, tasks) of the training images of the first `seen` tasks, in a random order.

        Their transform is that of evaluation, and batches differ in size by one image at most: nothing but the seed and
        the images decides them.

        Raises:
            UserError: if there is only one image, which has no variance.
        """
        if lost := [self.tasks[index].name for index in self._gone.get("train", ()) if index < seen]:
            raise UserError(f"bn=recompute needs all training images; some of {', '.join(lost)} are gone. Leave it out")
        samples = np.unique(np.concatenate([task.train for task in self.tasks[:seen]]))
        if len(samples) < 2:
            raise UserError(
                f"bn=recompute needs at least 2 training images; the first {seen} tasks have {len(samples)}"
            )
        order = samples[permutation(len(samples), self.seed, "statistics")]
        batches = np.array_split(order, -(-len(order) // STATISTICS_BATCH))
        return self._eval_loader("validation", batches, [np.zeros_like(batch) for batch in batches])

    def _eval_loader(self, split: str, batches: Sequence[np.ndarray], tasks: Sequence[np.ndarray]) -> EvalLoader:
        images = EvalImages(self.source.test if split == "test" else self.source.train, self.transforms)
        options = {"num_workers": self.loading.workers, "pin_memory": self.loading.pin, "generator": self._generator()}
        return EvalLoader(images, split, self._kept, batches, tasks, **options)

    def on_after_batch_transfer(self, batch: tuple[Any, Any, Any], dataloader_idx: int = 0) -> tuple[Any, Any, Any]:
        """Make the pixels of a batch what the model takes; Lightning calls this on the device."""
        pixels, *rest = batch
        return normalized(pixels, self.transforms.recipe), *rest

    def on_device(self, batches: Iterable[Any], device: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the batches of a loader of this stream on a device, as the model takes them."""
        for pixels, *rest in batches:
            there = Crops(*(t.to(device) for t in pixels)) if isinstance(pixels, Crops) else pixels.to(device)
            yield normalized(there, self.transforms.recipe), *(t.to(device) for t in rest)

    def describe(self) -> dict[str, Any]:
        """Return the content of ``stream.json``; see `describe`."""
        return describe(self.source, self.tasks)

    def _generator(self) -> torch.Generator:
        # Without a generator of its own, a loader would draw from the global one, which training uses.
        return torch.Generator().manual_seed(key(self.seed))


def describe(source: Source, tasks: Sequence[Task]) -> dict[str, Any]:
    """Return the content of ``stream.json``: classes, sample counts and hashes of the sample indices per task."""
    names, contents = source.class_names, dict(zip(source.domain_names, source.domain_contents, strict=False))
    return {
        "num_classes": source.num_classes,
        "class_order": list(dict.fromkeys(c for task in tasks for c in task.classes)),
        **({"notes": dict(source.notes)} if source.notes else {}),
        "tasks": [
            {
                "name": task.name,
                "classes": task.classes,
                "class_names": [names[c] for c in task.classes],
                **{s: len(getattr(task, s)) for s in ("train", "validation", "test")},
                **{f"{s}_sha256": _hash(getattr(task, s)) for s in ("train", "validation", "test")},
                **({"images_sha256": contents[task.name]} if contents else {}),
            }
            for task in tasks
        ],
    }


def _hash(indices: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(indices, dtype="<i8").tobytes()).hexdigest()
