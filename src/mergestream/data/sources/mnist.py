"""MNIST, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import MNIST

from mergestream.data.archive import official
from mergestream.data.images import Pictures
from mergestream.data.protocol import class_names, templates
from mergestream.data.source import Source, Split, prompts


def mnist(root: str, download: bool = False) -> Source:
    """60,000 + 10,000 handwritten digits of 28 px.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with official(
        "mnist", Path(root) / "MNIST/raw", root,
        archive="the four idx-ubyte.gz files", size="11 MB", place="yann.lecun.com/exdb/mnist", download=download,
        into="MNIST/raw",
    ):  # fmt: skip
        parts = [MNIST(root, train=part, download=download) for part in (True, False)]
        train, test = (Split(Pictures(p.data.numpy()), p.targets.numpy().astype(np.int64)) for p in parts)
    names = class_names("mnist")
    return Source(names, prompts(names, templates("mnist")), train, test)
