"""STL-10, read by torchvision from the official files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import STL10

from mergestream.data.archive import archive_errors
from mergestream.data.images import ImageArray
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def stl10(root: str, download: bool = False) -> Source:
    """Return STL-10: 5,000 training and 8,000 test images of 96 px in 10 classes.

    Raises:
        UserError: if the files are missing or damaged.
    """
    with archive_errors(
        "stl10", Path(root) / STL10.base_folder, root,
        files="stl10_binary.tar.gz", size="2.6 GB", website="cs.stanford.edu/~acoates/stl10", download=download,
    ):  # fmt: skip
        parts = [STL10(root, split=part, download=download) for part in ("train", "test")]
        train, test = (Split(ImageArray(p.data.transpose(0, 2, 3, 1)), p.labels.astype(np.int64)) for p in parts)
        names = list(parts[0].classes)
    return Source(names, prompts(names, templates("stl10")), train, test)
