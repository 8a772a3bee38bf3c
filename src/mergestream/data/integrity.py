"""Checks the image files of a dataset before training starts: corrupt files, and test images in the training set."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mergestream.data.decode import open_picture
from mergestream.data.images import image_paths
from mergestream.data.source import Source, Split
from mergestream.runtime import files, processes
from mergestream.runtime.errors import UserError, first_line

MANY = 5000  # files from which on a notice says why the start takes a while
CHUNK = 256  # files that a thread decodes at a time
VERSION = 3  # of the outcome, which changes with what is decoded how


def check_images(source: Source, cache: Path, *, skip_corrupt: bool) -> Source:
    """Decode every image file of a dataset once, and return the dataset without the corrupt ones.

    Prints how many test images are byte-identical to training images.

    Args:
        source: the dataset.
        cache: folder for the outcome, which is valid until a file changes its size or modification time.
        skip_corrupt: ``data.skip_corrupt``: drop corrupt files, and classes that they leave without training images.

    Raises:
        UserError: if a file is corrupt and `skip_corrupt` is false.
    """
    paths = [[path for _, path in image_paths(split.images)] for split in (source.train, source.test)]
    count = sum(map(len, paths))
    if not count:
        return source
    outcome = _outcome(paths, cache, keep_failure=skip_corrupt)
    if outcome["leaked"]:
        processes.say(
            f"{outcome['leaked']} of {len(paths[1])} test image files are also in the training set, byte for byte"
        )
    corrupt = outcome["corrupt"]
    if not corrupt:
        return source
    if not skip_corrupt:
        path, reason = next(iter(corrupt.items()))
        raise UserError(
            f"{path} is not a readable image ({reason}); {len(corrupt)} of {count} image files are corrupt. "
            "Replace them, or write data.skip_corrupt=true to leave them out"
        )
    processes.say(f"left out {len(corrupt)} corrupt image files of {count} (data.skip_corrupt=true)")
    train, test = (_drop(split, corrupt) for split in (source.train, source.test))
    notes = {**source.notes, "left_out_as_corrupt": sorted(corrupt)}
    return _without_empty_classes(source, replace(source, train=train, test=test, notes=notes))


def decode_error(path: str) -> str | None:
    """Return why an image file cannot be decoded, or None if it can."""
    try:
        open_picture(path, draft=(64, 64))
    except Exception as error:  # each of thirty image formats raises exceptions of its own
        return first_line(error)
    return None


def _outcome(paths: Sequence[Sequence[str]], cache: Path, *, keep_failure: bool) -> dict[str, Any]:
    """Return path and reason of the corrupt files, and how many test files the training set has too.

    Args:
        paths: of the training and the test files.
        cache: folder of earlier outcomes.
        keep_failure: whether to cache an outcome with corrupt files; a run that fails writes nothing.
    """
    note = cache / f"{fingerprint(paths)}.json"
    with suppress(UserError):  # an outcome that is missing or damaged is computed again
        return files.read_json(note, "corrupt", "leaked", own=True)
    everything = [path for split in paths for path in split]
    found = {"images": len(everything), "corrupt": _find_corrupt(everything), "leaked": _count_leaked(*paths)}
    if keep_failure or not found["corrupt"]:
        files.write_json(note, found)
    return found


def fingerprint(paths: Sequence[Sequence[str]]) -> str:
    """Return a hash of the names, sizes and modification times of image files, by split."""
    digest = hashlib.blake2b(str(VERSION).encode(), digest_size=16)
    for split in paths:
        for path in split:
            size, mtime = _status(path)
            digest.update(os.fsencode(path) + f"\0{size}\0{mtime}\n".encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _status(path: str) -> tuple[int, int]:
    """Return size and modification time of a file; (-1, 0) if there is none, as behind a broken link."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, 0
    return status.st_size, status.st_mtime_ns


def _find_corrupt(paths: Sequence[str]) -> dict[str, str]:
    """Return path and reason of every file that cannot be decoded."""
    if len(paths) > MANY:
        processes.say(f"checking {len(paths)} image files, once per dataset")

    def check(chunk: Sequence[str]) -> dict[str, str]:
        reasons = ((path, decode_error(path)) for path in chunk)
        return {path: reason for path, reason in reasons if reason is not None}

    # Warning filters belong to the process, so they are set once here and not in each thread.
    with warnings.catch_warnings(), ThreadPoolExecutor(processes.cores()) as pool:
        warnings.simplefilter("ignore")  # Pillow warns of unusual metadata
        chunks = [paths[i : i + CHUNK] for i in range(0, len(paths), CHUNK)]
        return {path: reason for found in pool.map(check, chunks) for path, reason in found.items()}


def _count_leaked(train: Sequence[str], test: Sequence[str]) -> int:
    """Return how many test files have the content of a training file. Only files of equal size are read."""
    sizes = [{_status(path)[0] for path in split} for split in (train, test)]
    shared = sizes[0] & sizes[1] - {-1}
    hashes = [[_content(path) for path in split if _status(path)[0] in shared] for split in (train, test)]
    trained = set(hashes[0]) - {None}
    return sum(content in trained for content in hashes[1])


def _content(path: str) -> bytes | None:
    try:
        return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).digest()
    except OSError:
        return None


def _drop(split: Split, corrupt: dict[str, str]) -> Split:
    keep = np.ones(len(split), dtype=bool)
    keep[[position for position, path in image_paths(split.images) if path in corrupt]] = False
    return split.subset(np.flatnonzero(keep))


def _without_empty_classes(before: Source, after: Source) -> Source:
    """Return `after` without the classes whose training images were all corrupt, and say which these are."""
    left = set(after.train.labels.tolist())
    empty = sorted(set(before.train.labels.tolist()) - left)
    if not empty:
        return after
    processes.say(f"left out {', '.join(after.class_names[c] for c in empty)}: no training image can be read")
    return after.without_classes(empty)
