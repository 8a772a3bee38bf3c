"""The progress display of a whole stream."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class StreamProgress(pl.Callback):
    """A bar over the optimizer steps of all tasks, with task, epoch, loss, accuracy and remaining time.

    Without a terminal, or on CI, there is no bar: `finish` prints one line per task.

    Args:
        steps: optimizer steps of all tasks that are still to be trained.
        epochs: epochs of each task.
        visible: whether this process prints.
    """

    def __init__(self, steps: int, epochs: Sequence[int], visible: bool = True):
        self.console = Console(quiet=not visible, highlight=False, soft_wrap=True)
        self.tasks, self.epochs = len(epochs), epochs
        self.current = 0
        self.began = time.monotonic()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not visible or not self.console.is_terminal or bool(os.environ.get("CI")),
        )
        self.line = self.bar.add_task("training", total=steps)

    def __enter__(self) -> StreamProgress:
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def start(self, task: int) -> None:
        """Show that task `task`, counted from 0, begins."""
        self.current, self.began = task, time.monotonic()

    def extend(self, steps: int) -> None:
        """Add the optimizer steps of a task that has to be trained again."""
        self.bar.update(self.line, total=(self.bar.tasks[self.line].total or 0) + steps)

    def finish(self, overall: float | None) -> None:
        """Show the accuracy over all test images after the current task; None if it was not evaluated."""
        seconds = time.monotonic() - self.began
        measured = "not evaluated" if overall is None else f"overall accuracy {overall:.3f}"
        self.console.print(f"task {self.current + 1}/{self.tasks}  {measured}  {seconds:.1f} s")

    def on_train_start(self, trainer: pl.Trainer, learner: pl.LightningModule) -> None:
        self.bar.advance(self.line, trainer.global_step)  # steps of an earlier process

    def on_train_batch_end(self, trainer: pl.Trainer, learner: pl.LightningModule, *_: Any) -> None:
        self.bar.advance(self.line)
        if self.bar.disable or trainer.global_step % 10 != 1:  # reading a metric waits for the device
            return
        values = trainer.callback_metrics
        text = f"task {self.current + 1}/{self.tasks}  epoch {trainer.current_epoch + 1}/{self.epochs[self.current]}"
        for name in ("loss", "accuracy"):
            if name in values:
                text += f"  {name} {values[name].item():.3f}"
        self.bar.update(self.line, description=text)
