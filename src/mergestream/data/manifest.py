"""Train and test sets for datasets without an official split, drawn by file name and recorded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import is_whole, require_number
from mergestream.runtime.seeding import key

Record = dict[str, int | float | str]


def split_by_name(
    names: Sequence[str], labels: Sequence[int], *, test_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, Record]:
    """Split files into train and test by a hash of their names.

    The test set has the round(test_fraction · n) of the n files of each class whose hashes of (seed, name) are lowest:
    at least one file, but never all of them. The split does not depend on the order in which a file system lists the
    files, and no file is moved.

    Args:
        names: relative paths, with forward slashes.
        labels: class id of each file.
        test_fraction: in (0, 1).
        seed: ``dataset.split_seed``. It is not the seed of the run, so all runs share their test images.

    Returns:
        Positions of the training files, positions of the test files, and a record for ``stream.json`` with the hash of
        the manifest, which lists every file with its split.

    Raises:
        UserError: if `test_fraction` or `seed` is out of range.
    """
    require_number("dataset.test_fraction", test_fraction, "above 0 and below 1", lambda x: 0 < x < 1)
    if not is_whole(seed):
        raise UserError(f"dataset.split_seed must be a whole number; got dataset.split_seed={seed}")
    hashes = np.array([key(seed, "manifest", name) for name in names])
    classes = np.asarray(labels)
    is_test = np.zeros(len(names), dtype=bool)
    for label in np.unique(classes):
        of_class = np.flatnonzero(classes == label)
        of_class = of_class[np.argsort(hashes[of_class])]
        is_test[of_class[: min(len(of_class) - 1, max(1, round(test_fraction * len(of_class))))]] = True
    lines = sorted(f"{'test' if test else 'train'} {name}\n" for name, test in zip(names, is_test, strict=True))
    record: Record = {
        "split_seed": seed,
        "test_fraction": test_fraction,
        "train": int((~is_test).sum()),
        "test": int(is_test.sum()),
        "manifest_sha256": hashlib.sha256(os.fsencode("".join(lines))).hexdigest(),
    }
    return np.flatnonzero(~is_test), np.flatnonzero(is_test), record
