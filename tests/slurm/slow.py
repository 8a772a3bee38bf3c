"""What jobs of the tests call: a training that waits while a file is there, so that it can be stopped in the middle."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from mergestream.training.callbacks.checkpoint import Checkpointing


def logger(path: Path, config: dict[str, Any]) -> None:
    """Log nothing; after a step, the process that writes waits for a signal, or until the file $SLOW is gone."""
    original = Checkpointing.on_train_batch_end

    def save_and_wait(self: Checkpointing, *arguments: Any) -> None:
        original(self, *arguments)
        while Path(os.environ["SLOW"]).exists() and not self.signals.requested:
            time.sleep(0.1)

    Checkpointing.on_train_batch_end = save_and_wait  # type: ignore[method-assign]


def never_ready() -> None:
    """Run train.py, which never gets to the training."""
    from mergestream.cli import train
    from mergestream.training.session import Session

    def wait(*arguments: Any) -> None:
        print("getting ready", flush=True)
        time.sleep(600)

    Session.open = wait  # type: ignore[method-assign]
    train.main()
