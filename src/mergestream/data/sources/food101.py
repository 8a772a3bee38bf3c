"""Food-101, read by torchvision from the official archive."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import Food101

from mergestream.data.archive import file_split, official, spoken
from mergestream.data.protocol import templates
from mergestream.data.source import Source, prompts


def food101(root: str, download: bool = False) -> Source:
    """75,750 + 25,250 photos of 101 dishes.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    with official(
        "food101", Path(root) / "food-101", root,
        archive="food-101.tar.gz", size="5.0 GB", place="data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
        download=download,
    ):  # fmt: skip
        parts = [Food101(root, split=part, download=download) for part in ("train", "test")]
        if parts[0].classes != parts[1].classes:  # labels are the places of the names in each list
            raise ValueError("the lists of train and test must have the same classes")
    train, test = (file_split(p._image_files, p._labels) for p in parts)
    names = [spoken(name) for name in parts[0].classes]
    return Source(names, prompts(names, templates("food101")), train, test)
