"""CIFAR10, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10

from mergestream.data.archive import official
from mergestream.data.images import Pictures
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def cifar10(root: str, download: bool = False) -> Source:
    """50,000 + 10,000 colour images of 32 px in 10 classes.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with official(
        "cifar10", Path(root) / CIFAR10.base_folder, root,
        archive="cifar-10-python.tar.gz", size="170 MB", place="cs.toronto.edu/~kriz/cifar.html", download=download,
    ):  # fmt: skip
        parts = [CIFAR10(root, train=part, download=download) for part in (True, False)]
    train, test = (Split(Pictures(p.data), np.asarray(p.targets, dtype=np.int64)) for p in parts)
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("cifar10")), train, test)
