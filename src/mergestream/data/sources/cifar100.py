"""CIFAR-100, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR100

from mergestream.data.archive import archive_errors, readable_name
from mergestream.data.images import ImageArray
from mergestream.data.protocol import class_orders, templates
from mergestream.data.source import Source, Split, prompts


def cifar100(root: str, download: bool = False) -> Source:
    """Return CIFAR-100: 50,000 training and 10,000 test images of 32 px in 100 classes.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with archive_errors(
        "cifar100", Path(root) / CIFAR100.base_folder, root,
        files="cifar-100-python.tar.gz", size="169 MB", website="cs.toronto.edu/~kriz/cifar.html", download=download,
    ):  # fmt: skip
        parts = [CIFAR100(root, train=part, download=download) for part in (True, False)]
    train, test = (Split(ImageArray(p.data), np.asarray(p.targets, dtype=np.int64)) for p in parts)
    names = [readable_name(name) for name in parts[0].classes]
    return Source(names, prompts(names, templates("cifar100")), train, test, class_orders("cifar100"))
