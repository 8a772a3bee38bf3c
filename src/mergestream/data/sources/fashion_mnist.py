"""Fashion-MNIST, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import FashionMNIST

from mergestream.data.archive import archive_errors
from mergestream.data.images import ImageArray
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def fashion_mnist(root: str, download: bool = False) -> Source:
    """Return Fashion-MNIST: 60,000 training and 10,000 test images of 28 px in 10 classes of clothing.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with archive_errors(
        "fashion_mnist", Path(root) / "FashionMNIST/raw", root,
        files="the four idx-ubyte.gz files", size="30 MB", website="github.com/zalandoresearch/fashion-mnist",
        download=download, folder="FashionMNIST/raw",
    ):  # fmt: skip
        parts = [FashionMNIST(root, train=part, download=download) for part in (True, False)]
        train, test = (Split(ImageArray(p.data.numpy()), p.targets.numpy().astype(np.int64)) for p in parts)
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("fashion_mnist")), train, test)
