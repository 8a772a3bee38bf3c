"""The UCI handwritten digits that scikit-learn ships."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from mergestream.data.images import ImageArray
from mergestream.data.source import Source, Split, prompts

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}.",
    "a picture of the digit {}.",
    "a drawing of the digit {}.",
    "a scan of the digit {}.",
)


def digits(test_every: int = 4) -> Source:
    """Return the UCI digits: 1,797 scans of 8×8 px of handwritten digits in 10 classes.

    Args:
        test_every: every `test_every`-th scan of each class is a test image, so that both splits have all writers.
    """
    bunch = load_digits()
    pixels = (
        (bunch.images * (255 / 16)).round().astype(np.uint8)
    )  # scikit-learn stores the ink as 0 … 16, bright on dark
    labels = bunch.target.astype(np.int64)
    rank = np.empty(len(labels), dtype=np.int64)
    for label in range(len(NAMES)):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = np.arange(len(of_class))
    held_out = rank % test_every == test_every - 1
    train, test = (Split(ImageArray(pixels[mask]), labels[mask]) for mask in (~held_out, held_out))
    return Source(NAMES, prompts(NAMES, TEMPLATES), train=train, test=test)
