"""Finds corrupt image files before training starts."""

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

from mergestream.data.images import image_paths
from mergestream.data.source import Source, Split
from mergestream.runtime import files, processes
from mergestream.runtime.errors import UserError, first_line

MANY = 5000  # files from which on a notice says why the start takes a while
CHUNK = 256  # files that a thread decodes at a time


def check_images(source: Source, cache: Path, *, skip_corrupt: bool) -> Source:
    """Decode every image file of a dataset once, and return the dataset without the corrupt ones.

    Args:
        source: the dataset.
        cache: folder for the outcome, which is valid until a file changes its size or modification time.
        skip_corrupt: ``data.skip_corrupt``: drop corrupt files and print how many.

    Raises:
        UserError: if a file is corrupt and `skip_corrupt` is false.
    """
    paths = [path for split in (source.train, source.test) for _, path in image_paths(split.images)]
    if not paths:
        return source
    outcome = cache / f"{_fingerprint(paths)}.json"
    corrupt = None
    with suppress(UserError):  # an outcome that is missing or damaged is computed again
        corrupt = files.read_json(outcome, "corrupt", own=True)["corrupt"]
    if corrupt is None:
        corrupt = _find_corrupt(paths)
        if skip_corrupt or not corrupt:  # a failed run writes nothing
            files.write_json(outcome, {"images": len(paths), "corrupt": corrupt})
    if not corrupt:
        return source
    if not skip_corrupt:
        path, reason = next(iter(corrupt.items()))
        raise UserError(
            f"{path} is not a readable image ({reason}); {len(corrupt)} of {len(paths)} image files are corrupt. "
            "Replace them, or write data.skip_corrupt=true to leave them out"
        )
    if processes.rank() == 0:
        print(f"left out {len(corrupt)} corrupt image files of {len(paths)} (data.skip_corrupt=true)", file=sys.stderr)
    train, test = (_drop(split, corrupt) for split in (source.train, source.test))
    return replace(source, train=train, test=test, notes={**source.notes, "left_out_as_corrupt": sorted(corrupt)})


def decode_error(path: str) -> str | None:
    """Return why an image file cannot be decoded, or None if it can."""
    try:
        with Image.open(path) as image:
            image.draft("L", (64, 64))  # reads all of a JPEG but decodes it at a lower resolution, much faster
            image.load()
    except Exception as error:  # each of thirty image formats raises exceptions of its own
        return first_line(error)
    return None


def _fingerprint(paths: Sequence[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        status = os.stat(path)
        digest.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _find_corrupt(paths: Sequence[str]) -> dict[str, str]:
    """Path and reason of every file that cannot be decoded."""
    if len(paths) > MANY:
        print(f"checking {len(paths)} image files, once per dataset", file=sys.stderr)

    def check(chunk: Sequence[str]) -> dict[str, str]:
        reasons = ((path, decode_error(path)) for path in chunk)
        return {path: reason for path, reason in reasons if reason is not None}

    # Warning filters belong to the process, so they are set once here and not in each thread.
    with warnings.catch_warnings(), ThreadPoolExecutor(processes.cores()) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of unusual metadata
        chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
        return {path: reason for found in pool.map(check, chunks) for path, reason in found.items()}


def _drop(split: Split, corrupt: dict[str, str]) -> Split:
    keep = np.ones(len(split), dtype=bool)
    keep[[position for position, path in image_paths(split.images) if path in corrupt]] = False
    return split.subset(np.flatnonzero(keep))
