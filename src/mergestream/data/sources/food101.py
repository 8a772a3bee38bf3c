"""Food-101, read by torchvision from the official archive."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import Food101

from mergestream.data.archive import archive_errors, file_split, readable_name
from mergestream.data.protocol import templates
from mergestream.data.source import Source, prompts


def food101(root: str, download: bool = False) -> Source:
    """Return Food-101: 75,750 training and 25,250 test photos of 101 dishes.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    with archive_errors(
        "food101", Path(root) / "food-101", root,
        files="food-101.tar.gz", size="5.0 GB", website="data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        download=download,
    ):  # fmt: skip
        parts = [Food101(root, split=part, download=download) for part in ("train", "test")]
        if parts[0].classes != parts[1].classes:  # each list numbers its own classes
            raise ValueError("the lists of train and test must have the same classes")
    train, test = (file_split(p._image_files, p._labels) for p in parts)
    names = [readable_name(name) for name in parts[0].classes]
    return Source(names, prompts(names, templates("food101")), train, test)
