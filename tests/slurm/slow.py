"""What jobs of the tests call: a training that waits while a file is there, so that it can be stopped in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
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


def like_submitit(allowed: int) -> None:
    """Run train.py below a handler that requeues the job as often as allowed, as submitit's does around a function."""
    from mergestream.cli import train

    def time_is_up(*arguments: Any) -> None:
        if int(os.environ.get("SLURM_RESTART_COUNT", 0)) >= allowed:
            raise RuntimeError("Job not requeued because: timed-out too many times.")
        subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
        sys.exit(-1)

    signal.signal(signal.SIGUSR2, time_is_up)
    train.main()
