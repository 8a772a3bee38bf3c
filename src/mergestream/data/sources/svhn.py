"""SVHN, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import SVHN

from mergestream.data.archive import official
from mergestream.data.images import Pictures
from mergestream.data.protocol import class_names, templates
from mergestream.data.source import Source, Split, prompts


def svhn(root: str, download: bool = False) -> Source:
    """73,257 + 26,032 house numbers of 32 px, cropped to one digit.

    Raises:
        UserError: if the files are missing or damaged.
    """
    parts = []
    for part in ("train", "test"):
        with official(
            "svhn", Path(root) / f"{part}_32x32.mat", root,
            archive="train_32x32.mat and test_32x32.mat", size="246 MB", place="ufldl.stanford.edu/housenumbers",
            download=download, unpack=False,
        ):  # fmt: skip
            parts.append(SVHN(root, split=part, download=download))
    train, test = (Split(Pictures(p.data.transpose(0, 2, 3, 1)), p.labels.astype(np.int64)) for p in parts)
    names = class_names("svhn")
    return Source(names, prompts(names, templates("svhn")), train, test)
