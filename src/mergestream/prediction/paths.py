"""Which pictures ``images`` means."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from pathlib import Path

from mergestream.data.listing import find_pictures
from mergestream.runtime.errors import UserError


def picture_paths(images: Sequence[str] | None) -> list[str]:
    """Return the paths of the pictures that are meant, in the order in which they are named.

    A folder stands for all visible picture files below it, sorted, as in ``dataset=folder``. A path that does not
    exist stays, as long as another one does: the answer for it says why it cannot be read.

    Args:
        images: paths of pictures and folders, and patterns; None is standard input, with a path on each line.

    Raises:
        UserError: if there is no picture.
    """
    if images is None:
        lines = (os.fsdecode(line).rstrip("\r\n") for line in sys.stdin.buffer)
        # Blanks can belong to a name.
        if not (paths := [line if os.path.lexists(line) else line.strip() for line in lines if line.strip()]):
            raise UserError("images=- must get a path on each line of standard input; there was none")
        return paths
    paths = [path for text in images for path in _meant(os.path.expanduser(text))]
    if not any(map(os.path.exists, paths)):
        given = images[0] if len(images) == 1 else f"[{','.join(images)}]"
        raise UserError(f"images must be pictures, or folders with pictures; there is none in images={given}")
    return paths


def _meant(path: str) -> Iterator[str]:
    if os.path.isdir(path):
        yield from find_pictures(Path(path))
    elif os.path.lexists(path) or not has_magic(path):
        yield path
    else:
        for found in sorted(glob(path, recursive=True)):
            yield from find_pictures(Path(found)) if os.path.isdir(found) else [found]
