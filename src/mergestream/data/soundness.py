"""Corrupt image files are found before the training begins, not in its tenth hour."""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from mergestream.data.images import files_of
from mergestream.data.source import Source, Split
from mergestream.runtime import files, processes
from mergestream.runtime.errors import UserError

MANY = 5000  # files that take long enough to be told about
PART = 256  # files that one thread decodes before it asks for more


def without_corrupt(source: Source, memory: Path, *, skip: bool) -> Source:
    """`source`, every image file of which has been decoded once; the corrupt ones are left out, or are an error.

    Args:
        source: the dataset.
        memory: folder that remembers the outcome, for as long as no file changes its size or time.
        skip: ``data.skip_corrupt``: leave corrupt files out, and say so.

    Raises:
        UserError: if a file is corrupt and `skip` is false.
    """
    paths = [path for split in (source.train, source.test) for _, path in files_of(split.images)]
    if not paths:
        return source
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    note = memory / f"{digest.hexdigest()}.json"
    corrupt: dict[str, str] | None = None
    with suppress(UserError):  # a note that is missing or damaged is made again
        corrupt = files.read_json(note, "corrupt", own=True)["corrupt"]
    if corrupt is None:
        if len(paths) > MANY:
            print(f"decoding {len(paths)} image files once, to find corrupt ones", file=sys.stderr)
        # Filters of warnings belong to the process: threads that each set and reset them would leave them changed.
        with warnings.catch_warnings(), ThreadPoolExecutor(processes.cores()) as pool:
            warnings.simplefilter("ignore")  # of odd metadata
            parts = [paths[i : i + PART] for i in range(0, len(paths), PART)]
            corrupt = {path: reason for found in pool.map(_faults, parts) for path, reason in found.items()}
        if skip or not corrupt:  # an error leaves nothing behind
            files.write_json(note, {"images": len(paths), "corrupt": corrupt})
    if not corrupt:
        return source
    if not skip:
        path, reason = next(iter(corrupt.items()))
        raise UserError(
            f"{path} is no sound image ({reason}); {len(corrupt)} of {len(paths)} image files are corrupt. Replace "
            "them, or write data.skip_corrupt=true to leave them out"
        )
    train, test = (_without(split, corrupt) for split in (source.train, source.test))
    if processes.rank() == 0:
        print(f"left out {len(corrupt)} corrupt image files of {len(paths)} (data.skip_corrupt=true)", file=sys.stderr)
    return replace(source, train=train, test=test, notes={**source.notes, "left_out_as_corrupt": sorted(corrupt)})


def _faults(paths: Sequence[str]) -> dict[str, str]:
    reasons = ((path, fault(path)) for path in paths)
    return {path: reason for path, reason in reasons if reason is not None}


def fault(path: str) -> str | None:
    """Why an image file cannot be decoded; None if it can."""
    try:
        with Image.open(path) as image:
            image.draft("L", (64, 64))  # a JPEG is read whole but scaled down on the way, which is much faster
            image.load()
    except Exception as error:  # the decoders of thirty formats raise what they like
        return (str(error).strip().splitlines() or [type(error).__name__])[0]
    return None


def _without(split: Split, corrupt: dict[str, str]) -> Split:
    keep = np.ones(len(split), dtype=bool)
    keep[[position for position, path in files_of(split.images) if path in corrupt]] = False
    return split.choose(np.flatnonzero(keep))
