"""CIFAR100, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR100

from mergestream.data.archive import official, spoken
from mergestream.data.images import Pictures
from mergestream.data.protocol import class_orders, templates
from mergestream.data.source import Source, Split, prompts


def cifar100(root: str, download: bool = False) -> Source:
    """50,000 + 10,000 colour images of 32 px in 100 classes.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with official(
        "cifar100", Path(root) / CIFAR100.base_folder, root,
        archive="cifar-100-python.tar.gz", size="169 MB", place="cs.toronto.edu/~kriz/cifar.html", download=download,
    ):  # fmt: skip
        parts = [CIFAR100(root, train=part, download=download) for part in (True, False)]
    train, test = (Split(Pictures(p.data), np.asarray(p.targets, dtype=np.int64)) for p in parts)
    names = [spoken(name) for name in parts[0].classes]
    return Source(names, prompts(names, templates("cifar100")), train, test, class_orders("cifar100"))
