"""Train and test of a dataset that comes without: drawn per class from the files' own names, and recorded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mergestream.runtime.errors import UserError
from mergestream.runtime.seeding import key


def divide(
    names: Sequence[str], labels: Sequence[int], *, test_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """(train, test) positions of the files, and a record with a hash of the manifest, for ``stream.json``.

    Of the n files of a class, the round(test_fraction · n), but at least one and not all, whose (seed, name) hash
    lowest are for the test: the draw depends on nothing but the names, whatever order a file system lists them in, and
    no file is moved.

    Args:
        names: relative paths, with forward slashes.
        labels: class id of each.
        test_fraction: in (0, 1).
        seed: ``dataset.split_seed``; not the seed of the run, so that all runs have the same test images.

    Raises:
        UserError: if `test_fraction` or `seed` is out of range.
    """
    if isinstance(test_fraction, bool) or not isinstance(test_fraction, (int, float)) or not 0 < test_fraction < 1:
        raise UserError(
            f"dataset.test_fraction must be a number between 0 and 1; got dataset.test_fraction={test_fraction}"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserError(f"dataset.split_seed must be a whole number; got dataset.split_seed={seed}")
    draws = np.array([key(seed, "manifest", name) for name in names])
    classes = np.asarray(labels)
    is_test = np.zeros(len(names), dtype=bool)
    for label in np.unique(classes):
        of_class = np.flatnonzero(classes == label)
        of_class = of_class[np.argsort(draws[of_class])]
        is_test[of_class[: min(len(of_class) - 1, max(1, round(test_fraction * len(of_class))))]] = True
    lines = sorted(f"{'test' if test else 'train'} {name}\n" for name, test in zip(names, is_test, strict=True))
    record = {
        "split_seed": seed,
        "test_fraction": test_fraction,
        "train": int((~is_test).sum()),
        "test": int(is_test.sum()),
        "manifest_sha256": hashlib.sha256("".join(lines).encode()).hexdigest(),
    }
    return np.flatnonzero(~is_test), np.flatnonzero(is_test), record
