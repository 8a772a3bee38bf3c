"""The digits of EMNIST, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import EMNIST

from mergestream.data.archive import archive_errors
from mergestream.data.images import ImageArray
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def emnist(root: str, download: bool = False) -> Source:
    """Return EMNIST digits: 240,000 training and 40,000 test images of 28 px.

    The files store the images transposed; here they are upright.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with archive_errors(
        "emnist", Path(root) / "EMNIST/raw", root,
        files="gzip.zip", size="562 MB", website="nist.gov/itl/products-and-services/emnist-dataset",
        download=download, folder="EMNIST/raw",
    ):  # fmt: skip
        parts = [EMNIST(root, "digits", train=part, download=download) for part in (True, False)]
        train, test = (
            Split(ImageArray(p.data.transpose(1, 2).contiguous().numpy()), p.targets.numpy().astype(np.int64))
            for p in parts
        )
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("emnist")), train, test)
