"""FER2013, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import FER2013

from mergestream.data.archive import official
from mergestream.data.images import Pictures
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def fer2013(root: str) -> Source:
    """28,709 + 7,178 grey faces of 48 px in 7 expressions; the test is both of the competition's.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with official(
        "fer2013", Path(root) / "fer2013", root,
        archive="fer2013.csv", size="301 MB",
        place="kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
        into="fer2013", unpack=False,
    ):  # fmt: skip
        parts = [FER2013(root, split=part) for part in ("train", "test")]
        train, test = (_split(p) for p in parts)
    names = ["angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral"]
    return Source(names, prompts(names, templates("fer2013")), train, test)


def _split(part: FER2013) -> Split:
    pixels, labels = zip(*part._samples, strict=True)
    if None in labels:  # of Kaggle's other files, train.csv and test.csv
        raise ValueError("test.csv has no labels; fer2013.csv has")
    return Split(Pictures(np.stack([image.numpy() for image in pixels])), np.asarray(labels, dtype=np.int64))
