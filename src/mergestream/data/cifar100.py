"""CIFAR100, read by torchvision from the official python archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR100

from mergestream.data.pictures import Pictures
from mergestream.data.protocol import class_orders, templates
from mergestream.data.source import Source, Split
from mergestream.errors import UserError


def cifar100(root: str, download: bool = False) -> Source:
    """50,000 + 10,000 colour images of 32 px in 100 classes, from ``<root>/cifar-100-python``.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    folder = Path(root) / CIFAR100.base_folder
    try:
        train, test = (CIFAR100(root, train=part, download=download) for part in (True, False))
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        state = "is unreadable or incomplete" if folder.exists() else "is not there"
        raise UserError(
            f"dataset=cifar100 needs {folder}, which {state}. Write data.download=true to fetch it (169 MB), or unpack "
            f"cifar-100-python.tar.gz from cs.toronto.edu/~kriz/cifar.html in data.root={root}"
        ) from error
    train_split, test_split = (Split(Pictures(s.data), np.asarray(s.targets, dtype=np.int64)) for s in (train, test))
    names = [name.replace("_", " ") for name in train.classes]
    return Source(names, templates("cifar100"), train_split, test_split, class_orders("cifar100"))
