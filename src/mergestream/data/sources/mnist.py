"""MNIST, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import MNIST

from mergestream.data.archive import archive_errors
from mergestream.data.images import ImageArray
from mergestream.data.protocol import class_names, templates
from mergestream.data.source import Source, Split, prompts


def mnist(root: str, download: bool = False) -> Source:
    """Return MNIST: 60,000 training and 10,000 test images of 28 px of handwritten digits.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with archive_errors(
        "mnist", Path(root) / "MNIST/raw", root,
        files="the four idx-ubyte.gz files", size="11 MB", website="yann.lecun.com/exdb/mnist", download=download,
        folder="MNIST/raw",
    ):  # fmt: skip
        parts = [MNIST(root, train=part, download=download) for part in (True, False)]
        train, test = (Split(ImageArray(p.data.numpy()), p.targets.numpy().astype(np.int64)) for p in parts)
    names = class_names("mnist")
    return Source(names, prompts(names, templates("mnist")), train, test)
