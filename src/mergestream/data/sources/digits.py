"""Digits: scikit-learn's bundled UCI handwritten digits, 1,797 real scans of 8×8 pixels in 10 classes."""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from mergestream.data.images import Pictures
from mergestream.data.source import Source, Split, prompts

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = (
    "a photo of the digit {}.",
    "a picture of the digit {}.",
    "a drawing of the digit {}.",
    "a scan of the digit {}.",
)


def digits(test_every: int = 4) -> Source:
    """Every `test_every`-th scan of each class is held out, so that both splits meet all of the writers."""
    bunch = load_digits()
    pixels = (bunch.images * (255 / 16)).round().astype(np.uint8)  # ink comes as 0…16, bright on dark
    labels = bunch.target.astype(np.int64)
    rank = np.empty(len(labels), dtype=np.int64)
    for label in range(len(NAMES)):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = np.arange(len(of_class))
    held_out = rank % test_every == test_every - 1
    train, test = (Split(Pictures(pixels[mask]), labels[mask]) for mask in (~held_out, held_out))
    return Source(NAMES, prompts(NAMES, TEMPLATES), train=train, test=test)
