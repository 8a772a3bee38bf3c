"""EMNIST's digits, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import EMNIST

from mergestream.data.archive import official
from mergestream.data.images import Pictures
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def emnist(root: str, download: bool = False) -> Source:
    """240,000 + 40,000 handwritten digits of 28 px, which the archive keeps transposed.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with official(
        "emnist", Path(root) / "EMNIST/raw", root,
        archive="gzip.zip", size="562 MB", place="nist.gov/itl/products-and-services/emnist-dataset",
        download=download, into="EMNIST/raw",
    ):  # fmt: skip
        parts = [EMNIST(root, "digits", train=part, download=download) for part in (True, False)]
        train, test = (
            Split(Pictures(p.data.transpose(1, 2).contiguous().numpy()), p.targets.numpy().astype(np.int64))
            for p in parts
        )
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("emnist")), train, test)
