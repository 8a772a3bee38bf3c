"""CIFAR-10, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10

from mergestream.data.archive import archive_errors
from mergestream.data.images import ImageArray
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def cifar10(root: str, download: bool = False) -> Source:
    """Return CIFAR-10: 50,000 training and 10,000 test images of 32 px in 10 classes.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with archive_errors(
        "cifar10", Path(root) / CIFAR10.base_folder, root,
        files="cifar-10-python.tar.gz", size="170 MB", website="cs.toronto.edu/~kriz/cifar.html", download=download,
    ):  # fmt: skip
        parts = [CIFAR10(root, train=part, download=download) for part in (True, False)]
    train, test = (Split(ImageArray(p.data), np.asarray(p.targets, dtype=np.int64)) for p in parts)
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("cifar10")), train, test)
