"""Kuzushiji-MNIST, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import KMNIST

from mergestream.data.archive import official
from mergestream.data.images import Pictures
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def kmnist(root: str, download: bool = False) -> Source:
    """60,000 + 10,000 cursive Japanese characters of 28 px in 10 classes.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with official(
        "kmnist", Path(root) / "KMNIST/raw", root,
        archive="the four idx-ubyte.gz files", size="21 MB", place="codh.rois.ac.jp/kmnist", download=download,
        into="KMNIST/raw",
    ):  # fmt: skip
        parts = [KMNIST(root, train=part, download=download) for part in (True, False)]
        train, test = (Split(Pictures(p.data.numpy()), p.targets.numpy().astype(np.int64)) for p in parts)
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("kmnist")), train, test)
