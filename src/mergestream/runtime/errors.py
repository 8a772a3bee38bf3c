"""`UserError`, and one-line summaries of other exceptions."""

from __future__ import annotations

import errno
import sys

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, the limit on a file's size


class UserError(Exception):
    """An error that the user can fix. Its message is one line: the rule, what arrived, what to type, the config key."""


class AgreedError(UserError):
    """An error that all processes of a run know of, so that the first says it and a sweep goes on."""


class ProcessError(UserError):
    """An error that one process of several met. It says so itself, and ends the sweep: the others may be elsewhere."""


def program(name: str) -> str:
    """Return how the user starts a command: ``python train.py`` in a checkout, ``mergestream-train`` if installed."""
    in_checkout = sys.argv and sys.argv[0].endswith(".py")
    return f"python {name}.py" if in_checkout else f"mergestream-{name}"


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or the name of its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def one_line(error: BaseException) -> str | None:
    """Return the line to show for an error that the user can fix, or None for a bug, which needs its traceback.

    An OSError that names a file is about a file or folder that the process may not use. One without a file name is a
    full disk, or a bug.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        return f"cannot write {error.filename or 'a file'} ({error.strerror}); free some space below root and out"
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot read or write {error.filename} ({error.strerror}); check root, data.root and out"
    return None
