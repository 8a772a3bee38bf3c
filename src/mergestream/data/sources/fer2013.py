"""FER2013, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import FER2013

from mergestream.data.archive import archive_errors
from mergestream.data.images import ImageArray
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def fer2013(root: str) -> Source:
    """Return FER2013: 28,709 training and 7,178 test images of 48 px of faces with 7 expressions.

    The test images are both the public and the private test set of the competition.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with archive_errors(
        "fer2013", Path(root) / "fer2013", root,
        files="fer2013.csv", size="301 MB",
        website="kaggle.com/c/challenges-in-representation-learning-facial-expression-recognition-challenge",
        folder="fer2013", unpack=False,
    ):  # fmt: skip
        parts = [FER2013(root, split=part) for part in ("train", "test")]
        train, test = (_split(p) for p in parts)
    names = ["angry", "disgusted", "fearful", "happy", "sad", "surprised", "neutral"]
    return Source(names, prompts(names, templates("fer2013")), train, test)


def _split(part: FER2013) -> Split:
    pixels, labels = zip(*part._samples, strict=True)
    if None in labels:  # Kaggle also has train.csv and test.csv
        raise ValueError("test.csv has no labels; use fer2013.csv")
    return Split(ImageArray(np.stack([image.numpy() for image in pixels])), np.asarray(labels, dtype=np.int64))
