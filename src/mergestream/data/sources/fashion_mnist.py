"""Fashion-MNIST, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import FashionMNIST

from mergestream.data.archive import official
from mergestream.data.images import Pictures
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def fashion_mnist(root: str, download: bool = False) -> Source:
    """60,000 + 10,000 grey images of 28 px in 10 classes of clothing.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with official(
        "fashion_mnist", Path(root) / "FashionMNIST/raw", root,
        archive="the four idx-ubyte.gz files", size="30 MB", place="github.com/zalandoresearch/fashion-mnist",
        download=download, into="FashionMNIST/raw",
    ):  # fmt: skip
        parts = [FashionMNIST(root, train=part, download=download) for part in (True, False)]
        train, test = (Split(Pictures(p.data.numpy()), p.targets.numpy().astype(np.int64)) for p in parts)
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("fashion_mnist")), train, test)
