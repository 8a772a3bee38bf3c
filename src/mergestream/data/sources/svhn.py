"""SVHN, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import SVHN

from mergestream.data.archive import archive_errors
from mergestream.data.images import ImageArray
from mergestream.data.protocol import class_names, templates
from mergestream.data.source import Source, Split, prompts


def svhn(root: str, download: bool = False) -> Source:
    """Return SVHN: 73,257 training and 26,032 test images of 32 px of house numbers, cropped to one digit.

    Raises:
        UserError: if the files are missing or damaged.
    """
    parts = []
    for part in ("train", "test"):
        with archive_errors(
            "svhn", Path(root) / f"{part}_32x32.mat", root,
            files="train_32x32.mat and test_32x32.mat", size="246 MB", website="ufldl.stanford.edu/housenumbers",
            download=download, unpack=False,
        ):  # fmt: skip
            parts.append(SVHN(root, split=part, download=download))
    train, test = (Split(ImageArray(p.data.transpose(0, 2, 3, 1)), p.labels.astype(np.int64)) for p in parts)
    names = class_names("svhn")
    return Source(names, prompts(names, templates("svhn")), train, test)
