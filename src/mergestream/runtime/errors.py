"""The one exception that users are meant to read."""

from __future__ import annotations

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the quota, the limit of a file's size


class UserError(Exception):
    """Something the user can put right, in one line: the rule, what arrived, what to type, and the config key."""


def one_line(error: BaseException) -> str | None:
    """The line for an error that the user can put right; None for a bug, which wants its traceback.

    An OSError that names a file means a folder that cannot be used; one that names none is a bug, or a full disk.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return f"{error.filename or 'a file'} cannot be written ({error.strerror}); free some space below root and out"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be read or written ({error.strerror}); look at root, data.root and out"
    return None
