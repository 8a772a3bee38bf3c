"""Waits for tasks to arrive, for ``watch``."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path


def last_change(path: Path) -> float:
    """Return when anything in a folder, or a file, last changed, in seconds; the time that no program can set."""
    latest = 0.0
    below = [os.path.join(top, name) for top, _, names in os.walk(path) for name in (".", *names)]
    for found in [str(path), *below]:
        with suppress(OSError):  # it has gone since, or leads nowhere
            latest = max(latest, os.stat(found).st_ctime)
    return latest


def wait_for_change(path: Path, known: float, seconds: float) -> float:
    """Wait until something has changed, and then not for `seconds`, so that nothing is still being copied.

    Args:
        path: a folder or a file.
        known: its last change that is known.
        seconds: between two looks.

    Returns:
        The last change.
    """
    while True:
        time.sleep(seconds)
        latest = last_change(path)
        if latest > known and time.time() - latest >= seconds:
            return latest
