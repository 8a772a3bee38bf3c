"""What jobs of the tests call: a training that waits while a file is there, so that it can be stopped in the middle."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from mergestream.training.callbacks.checkpoint import Checkpointing


def logger(path: Path, config: dict[str, Any]) -> None:
    """Log nothing, and make every step of the process that writes take a second while the file $SLOW is there."""
    original = Checkpointing.on_train_batch_end

    def wait(self: Checkpointing, *arguments: Any) -> None:
        if Path(os.environ["SLOW"]).exists():
            time.sleep(1)
        original(self, *arguments)

    Checkpointing.on_train_batch_end = wait  # type: ignore[method-assign]
