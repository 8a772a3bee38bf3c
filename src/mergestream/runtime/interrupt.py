"""What Ctrl-C, SIGTERM and SLURM's SIGUSR1 do: stop at once, or at the next place where the work can be saved.

Kept light: imported before torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # Ctrl-C; kill, and pre-emption; SLURM, before its time limit

_requested: signal.Signals | None = None
_deferring = False


class Stopped(BaseException):
    """A signal asked this process to stop; no `Exception`, so that nothing on the way takes it for a failure.

    Args:
        signum: the signal.
        message: what became of the work, for people.
    """

    def __init__(self, signum: int, message: str = ""):
        self.signum = signal.Signals(signum)
        self.message = message or (
            f"stopped by {self.signum.name}; type the same command again to continue after what is saved"
        )
        super().__init__(self.message)

    @property
    def code(self) -> int:
        """Exit code, as a shell reports a process that the signal ended."""
        return 128 + self.signum


@contextmanager
def watching() -> Iterator[None]:
    """Within the block, the signals raise `Stopped`, or wait while `deferred`; as before it, after it."""
    if not _settable():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    listen()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def listen() -> None:
    """Take the signals; also after somebody else has taken them, as Lightning does."""
    if _settable():
        for number in SIGNALS:
            signal.signal(number, _receive)


def _settable() -> bool:
    """Python lets the main thread alone set handlers."""
    return threading.current_thread() is threading.main_thread()


@contextmanager
def deferred() -> Iterator[None]:
    """Within the block the signals only leave a request, which `requested` tells."""
    global _deferring, _requested
    _deferring, _requested = True, None
    try:
        yield
    finally:
        _deferring = False
    if _requested is not None:
        raise Stopped(_requested)


def requested() -> int:
    """Number of the signal that asked to stop, 0 for none."""
    return 0 if _requested is None else int(_requested)


def _receive(number: int, frame: FrameType | None) -> None:
    global _requested
    repeated, _requested = _requested is not None, signal.Signals(number)
    # Whoever presses Ctrl-C twice wants out now. A worker is sent the signal by its launcher and by the terminal.
    if not _deferring or (repeated and number == signal.SIGINT and "LOCAL_RANK" not in os.environ):
        raise Stopped(number)


def requeue() -> str:
    """Ask SLURM to start this job again.

    What Lightning's SLURM plugin does on the signal, without its checkpoint: it would be taken in the middle of a step.

    Returns:
        What SLURM said, for people.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        return f"SLURM could not requeue job {job}: {error}"
    return f"SLURM has requeued job {job}" if done.returncode == 0 else f"SLURM did not requeue: {done.stderr.strip()}"
