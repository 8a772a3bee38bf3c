"""Train and test sets for datasets without an official split, drawn by file name and recorded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np
import torch

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import is_whole, require_number
from mergestream.runtime.seeding import key

Record = dict[str, int | float | str]


def split_by_draw(
    names: Sequence[str], train_fraction: float = 0.8, seed: int = 42
) -> tuple[np.ndarray, np.ndarray, Record]:
    """Split files into train and test as MTIL does (Zheng et al. 2023): by torch's permutation of all of them.

    The first ⌊train_fraction · n⌋ of the n permuted files are training files; classes are not kept apart.

    Args:
        names: relative paths, with forward slashes, in the order that the draw is for.
        train_fraction, seed: those of MTIL.

    Returns:
        What `split_by_name` returns, with sorted positions.
    """
    drawn = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).numpy()
    is_test = np.ones(len(names), dtype=bool)
    is_test[drawn[: int(train_fraction * len(names))]] = False
    return np.flatnonzero(~is_test), np.flatnonzero(is_test), {"split": "mtil", **_counted(names, is_test)}


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
    record: Record = {"split_seed": seed, "test_fraction": test_fraction, **_counted(names, is_test)}
    return np.flatnonzero(~is_test), np.flatnonzero(is_test), record


def _counted(names: Sequence[str], is_test: np.ndarray) -> Record:
    """Return the sizes of a split, and the hash of its manifest."""
    lines = sorted(f"{'test' if test else 'train'} {name}\n" for name, test in zip(names, is_test, strict=True))
    return {
        "train": int((~is_test).sum()),
        "test": int(is_test.sum()),
        "manifest_sha256": hashlib.sha256(os.fsencode("".join(lines))).hexdigest(),
    }
