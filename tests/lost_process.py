"""A training that loses a process once, in a module that the processes of a launch can import."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

from mergestream.cli.train import _train_here
from mergestream.runs.directory import Run
from mergestream.runtime import processes
from mergestream.runtime.interrupt import Signals
from mergestream.training.callbacks.checkpoint import Checkpointing


def train_and_lose_a_process(config: dict[str, Any], run: Run, signals: Signals) -> None:
    """Train, and kill process 1 as soon as the last task has a checkpoint, unless that has happened before."""
    killed, last = Path(config["root"], "killed"), run.checkpoint(config["tasks"] - 1)
    original = Checkpointing.on_train_batch_end

    def save_and_die(self: Checkpointing, *arguments: Any) -> None:
        original(self, *arguments)
        if self.path == last:
            while not last.exists():  # process 0 writes it
                time.sleep(0.01)
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    if processes.rank() == 1 and not killed.exists():
        Checkpointing.on_train_batch_end = save_and_die  # type: ignore[method-assign]
    _train_here(config, run, signals)
