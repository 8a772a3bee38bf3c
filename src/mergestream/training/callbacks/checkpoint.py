"""Saves the task in progress: when, and how a Lightning checkpoint becomes a safetensors file."""

from __future__ import annotations

import json
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor

from mergestream.compose.training import FitSettings
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.interrupt import Signals, Stopped
from mergestream.runtime.lock import Lock
from mergestream.training.callbacks.health import Health

SHARE = 0.02  # of the time may be spent on saving at the ends of epochs


class Checkpointing(pl.Callback):
    """Saves the task in progress at the ends of epochs, every few minutes within them, and when a signal arrives.

    An epoch that is shorter than 50 times the last save is not saved: after the first save, saving at the ends of
    epochs takes at most 2 % of the time. The processes decide together, and the first one writes.

    Args:
        path: of the file.
        task: the label for messages, such as "task 2 of 5".
        settings: how often to save, and how long to wait for a process.
        health: checked before each save.
        signals: that may ask to stop.
        lock: held by the process that writes; None on the others.
    """

    def __init__(
        self,
        path: Path,
        task: str,
        settings: FitSettings,
        health: Health,
        signals: Signals,
        lock: Lock | None,
    ):
        self.path, self.task, self.health, self.signals, self.lock = path, task, health, signals, lock
        self.timeout = timedelta(minutes=settings.timeout_minutes)
        self.every_epochs = settings.every_epochs
        self.every_seconds = None if settings.every_minutes is None else 60 * settings.every_minutes
        self.cost = 0.0  # seconds that the last save took
        self.before = 0.0  # seconds that earlier processes have trained this task
        self.began = self.saved = time.monotonic()
        self.group: Any = None

    @property
    def seconds(self) -> float:
        """How long this task has been trained, by this and earlier processes."""
        return self.before + time.monotonic() - self.began

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before = state["seconds"]

    def on_fit_start(self, trainer: pl.Trainer, learner: pl.LightningModule) -> None:
        if trainer.world_size > 1:
            # On the CPU, so that steps do not wait for the device.
            self.group = dist.new_group(backend="gloo", timeout=self.timeout)
        self.saved = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, learner: pl.LightningModule) -> None:
        # Lightning has just installed its own handler, which ends with exit code 0 what SIGTERM stops after a step.
        self.signals.listen()

    def on_fit_end(self, trainer: pl.Trainer, learner: pl.LightningModule) -> None:
        if self.group is not None:
            dist.destroy_process_group(self.group)

    def on_train_batch_end(self, trainer: pl.Trainer, learner: pl.LightningModule, *_: Any) -> None:
        if trainer.fit_loop.batch_idx + 1 < trainer.num_training_batches:  # the end of the epoch handles the last batch
            waited = time.monotonic() - self.saved
            self._save_if(trainer, learner, self.every_seconds is not None and waited >= self.every_seconds)

    def on_train_epoch_end(self, trainer: pl.Trainer, learner: pl.LightningModule) -> None:
        due = self.every_epochs is not None and (trainer.current_epoch + 1) % self.every_epochs == 0
        self._save_if(trainer, learner, due and SHARE * (time.monotonic() - self.saved) >= self.cost)

    def _save_if(self, trainer: pl.Trainer, learner: pl.LightningModule, due: bool) -> None:
        """Save if a save is due or a signal has arrived, on any process; then stop for the signal."""
        stop, save = int(self.signals.requested), int(due)
        if self.group is not None:
            wishes = torch.tensor([stop, save])
            dist.all_reduce(wishes, dist.ReduceOp.MAX, self.group)
            stop, save = wishes.tolist()
        if stop or save:
            started = time.monotonic()
            self.health.check(learner)
            if self.lock is not None:
                self.lock.check()
            trainer.save_checkpoint(self.path)
            self.saved, self.signals.saved = time.monotonic(), True
            self.cost = self.saved - started
        if stop:
            where = f"{self.task}, epoch {trainer.current_epoch + 1}, step {trainer.global_step}"
            name = signal.Signals(stop).name
            raise Stopped(stop, f"stopped by {name} at {where}; type the same command again to continue there", True)


class SafetensorsIO(CheckpointIO):
    """Stores Lightning's checkpoints without pickle: tensors as safetensors, the rest as JSON in the metadata.

    Args:
        stamp: metadata that tells whose checkpoint it is; see `Run.stamp`.

    Raises:
        UserError: if a value is neither a tensor nor plain, or a file was altered or belongs to another run.
    """

    def __init__(self, stamp: dict[str, str]):
        self.stamp = stamp

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        tensors: dict[str, Tensor] = {}
        state = _pack(checkpoint, tensors)
        files.write_tensors(Path(path), tensors, {**self.stamp, "state": json.dumps(state)})

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        files.verify(Path(path))
        metadata = files.read_metadata(Path(path))
        if wrong := [key for key, value in self.stamp.items() if key != "version" and metadata.get(key) != value]:
            raise UserError(
                f"{path} belongs to another run (its {wrong[0]} differs). Delete it to train the task again"
            )
        return _unpack(json.loads(metadata["state"]), files.read_tensors(Path(path)))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


def _pack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return `value` as JSON, with its tensors moved to `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):  # JSON would turn its keys into strings
        return {"dict": [[_pack(key, tensors), _pack(item, tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: [_pack(item, tensors) for item in value]}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise UserError(
        f"a checkpoint holds tensors, numbers, texts, lists and dicts; got {type(value).__name__}. "
        "Change state_dict() of the method."
    )


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_unpack(key, tensors): _unpack(item, tensors) for key, item in content}
    items = [_unpack(item, tensors) for item in content]
    return tuple(items) if kind == "tuple" else items
