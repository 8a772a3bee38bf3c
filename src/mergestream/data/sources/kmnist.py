"""Kuzushiji-MNIST, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import KMNIST

from mergestream.data.archive import archive_errors
from mergestream.data.images import ImageArray
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def kmnist(root: str, download: bool = False) -> Source:
    """Return Kuzushiji-MNIST: 60,000 training and 10,000 test images of 28 px of 10 cursive Japanese characters.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with archive_errors(
        "kmnist", Path(root) / "KMNIST/raw", root,
        files="the four idx-ubyte.gz files", size="21 MB", website="codh.rois.ac.jp/kmnist", download=download,
        folder="KMNIST/raw",
    ):  # fmt: skip
        parts = [KMNIST(root, train=part, download=download) for part in (True, False)]
        train, test = (Split(ImageArray(p.data.numpy()), p.targets.numpy().astype(np.int64)) for p in parts)
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("kmnist")), train, test)
