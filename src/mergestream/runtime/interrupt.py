"""What Ctrl-C, SIGTERM and a cluster's signals do: stop at once, or as soon as the work is saved.

Imports no torch, since the commands import this module before anything else.
"""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

TIME_IS_UP = (signal.SIGUSR1, signal.SIGUSR2)  # what SLURM is asked to send before its time limit; submitit asks for 2
SIGNALS = (signal.SIGINT, signal.SIGTERM, *TIME_IS_UP)  # Ctrl-C; kill and pre-emption
# The environment variable of `cluster=slurm` with three words: how often the time of a job may be up, when it is, in
# seconds since 1970, and a file with a line for each time that it was.
TIMEOUTS = "MERGESTREAM_TIMEOUTS"
# The environment variable of a task of Ray with a file, which is made if the task has saved something new.
SAVED = "MERGESTREAM_SAVED"
# Seconds before the end: SLURM is asked for a signal 120 before, may send it 60 earlier, and counts coarsely.
EARLY = 240
Handler = Callable[[int, FrameType | None], Any]


class Stopped(BaseException):
    """A signal asked this process to stop. It is not an `Exception`, so that no handler mistakes it for a failure.

    Args:
        signum: the signal.
        message: says what happened to the work.
        saved: whether the process that it stopped had saved something new.
    """

    def __init__(self, signum: int, message: str = "", saved: bool = False):
        self.signum, self.saved = signal.Signals(signum), saved
        self.message = message or (
            f"stopped by {self.signum.name}; type the same command again to continue from what is saved"
        )
        super().__init__(self.message)

    @property
    def code(self) -> int:
        """The exit code that a shell reports for a process that the signal ended."""
        return 128 + self.signum


class Signals:
    """Receives the signals that ask to stop: raises `Stopped`, or remembers the request while `deferred`.

    Attributes:
        saved: whether the job has saved something new, which a repeated command would not do again.
        inherited: the handlers that somebody else, such as submitit, had installed before.
    """

    def __init__(self) -> None:
        self.saved = False
        self.inherited: dict[int, Handler] = {}
        self._requested: signal.Signals | None = None
        self._deferring = False

    @property
    def requested(self) -> int:
        """The number of the signal that asked to stop; 0 for none."""
        return 0 if self._requested is None else int(self._requested)

    def listen(self) -> None:
        """Install the handlers, again if somebody else has replaced them, as Lightning does."""
        if _in_main_thread():
            for number in SIGNALS:
                signal.signal(number, self._receive)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only remember signals within the block; raise `Stopped` when it ends."""
        self._deferring, self._requested = True, None
        try:
            yield
        finally:
            self._deferring = False
        if self._requested is not None:
            raise Stopped(self._requested, saved=self.saved)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        repeated, self._requested = self._requested is not None, signal.Signals(number)
        # A second Ctrl-C stops at once. A worker gets each signal twice: from its launcher and from the terminal.
        impatient = repeated and number == signal.SIGINT and "LOCAL_RANK" not in os.environ
        if not self._deferring or impatient:
            raise Stopped(number, saved=self.saved)


@contextmanager
def watching() -> Iterator[Signals]:
    """Receive signals within the block, and restore the handlers afterwards."""
    signals = Signals()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    found = {number: _inherited(number, handler) for number, handler in before.items()}
    signals.inherited = {number: handler for number, handler in found.items() if handler is not None}
    signals.listen()
    try:
        yield signals
    finally:
        if _in_main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def _inherited(number: int, handler: Any) -> Handler | None:
    """Return the handler of somebody else, which a block around this one may have replaced; None for Python's own."""
    owner = getattr(handler, "__self__", None)
    if isinstance(owner, Signals):
        return owner.inherited.get(number)
    return handler if callable(handler) and handler is not signal.default_int_handler else None


def _work_is_done() -> None:
    """Ignore that the time is up while the process ends, which would have SLURM call the job failed."""
    for number in TIME_IS_UP:
        signal.signal(number, signal.SIG_IGN)


atexit.register(_work_is_done)


def note_saved() -> None:
    """Let who started this process know that it has saved something new, if they asked for it."""
    if SAVED in os.environ:
        Path(os.environ[SAVED]).touch()


def leave_threads(code: int, seconds: float) -> None:
    """End the process after some time, unless it has ended by then.

    Python waits for its threads when it exits, and one may be in a long computation that nobody needs any more.

    Args:
        code: the exit code.
        seconds: the time that is left to clean up and to report.
    """
    timer = threading.Timer(seconds, os._exit, (code,))
    timer.daemon = True
    timer.start()


def _in_main_thread() -> bool:
    """Python lets only the main thread set handlers."""
    return threading.current_thread() is threading.main_thread()


def requeue(saved: bool) -> str:
    """Ask SLURM to run this job again, and return SLURM's answer. A job that no longer gets on is not asked for.

    A pre-emption says nothing of that, since it may come at any time. A job of `cluster=slurm` can tell the two apart.

    Lightning's SLURM plugin would do the same, but it saves a checkpoint in the middle of a step.

    Args:
        saved: whether the job has saved something new since SLURM started it.
    """
    job = os.environ.get("SLURM_JOB_ID", "")
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if int(os.environ.get("SLURM_RESTART_COUNT", 0)) and not saved and _time_is_up():
        key = "cluster.minutes" if TIMEOUTS in os.environ else "sbatch --time"
        return (
            f"error: nothing new was saved since SLURM started job {job} again, so it is not requeued. "
            f"Give it more time ({key}), or save more often (checkpoint.every_minutes)"
        )
    if (used_up := _timeouts_used_up()) is not None:
        count = f"{used_up + 1} times" if used_up else "once"
        return (
            f"error: the time of job {job} was up {count}, and cluster.timeouts={used_up} allows no more; "
            "type the same command again to continue"
        )
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    except OSError as error:
        return f"SLURM could not requeue job {job}: {error}"
    return f"SLURM has requeued job {job}" if done.returncode == 0 else f"SLURM did not requeue: {done.stderr.strip()}"


def _time_is_up() -> bool:
    """Return whether a signal may have come because the time of this job is up.

    SLURM may send the same signal to a job that it pre-empts, but only one whose time is up gets it shortly before its
    end.
    """
    return TIMEOUTS not in os.environ or time.time() >= int(os.environ[TIMEOUTS].split()[1]) - EARLY


def _timeouts_used_up() -> int | None:
    """Return how often the time of this job was up, if that is as often as it may be; else note that it is again.

    SLURM counts how often it has started a job, for whatever reason.
    """
    if TIMEOUTS not in os.environ or not _time_is_up():
        return None
    allowed, _, file = os.environ[TIMEOUTS].split(maxsplit=2)
    with open(file, "a+") as lines:
        lines.seek(0)
        count = len(lines.readlines())
        if count >= int(allowed):
            return count
        print(time.strftime("%Y-%m-%d %H:%M:%S"), file=lines)
    return None
