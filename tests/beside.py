"""What jobs do in the tests of jobs that run side by side; in a module of its own, since other processes import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from mergestream.runtime.interrupt import Stopped


def say(words: str) -> int:
    """Print words in pieces, and return the id of the process."""
    for word in words.split():
        print(word, end=" ", flush=True)
    print()
    return os.getpid()


def die(words: str) -> int:
    """Die of a job that says so."""
    if words == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return say(words)


def stop(job: tuple[int, Path]) -> None:
    """Be the job that waits; or wait for it, send a signal to the process that hands out jobs, and end with both."""
    pid, waiting = job
    try:
        if pid:
            while not waiting.exists():
                time.sleep(0.01)
            os.kill(pid, signal.SIGTERM)
        else:
            waiting.touch()
        time.sleep(60)
    except Stopped as stopped:
        raise Stopped(stopped.signum, f"{'second' if pid else 'first'} stopped", saved=bool(pid)) from None
