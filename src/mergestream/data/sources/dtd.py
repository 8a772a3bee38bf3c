"""Describable Textures, read by torchvision from the official archive."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import DTD

from mergestream.data.archive import check_partition, file_split, official, spoken
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def dtd(root: str, download: bool = False, partition: int = 1) -> Source:
    """3,760 + 1,880 textures in 47 classes: train and val of a partition, and its test.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    check_partition(partition)
    with official(
        "dtd", Path(root) / "dtd/dtd", root,
        archive="dtd-r1.0.1.tar.gz", size="625 MB", place="robots.ox.ac.uk/~vgg/data/dtd", download=download,
        into="dtd",
    ):  # fmt: skip
        parts = [DTD(root, split=part, partition=partition, download=download) for part in ("train", "val", "test")]
        if not all(p.classes == parts[0].classes for p in parts):  # labels are the places of the names in each list
            raise ValueError("the lists of train, val and test must have the same classes")
    first, second, test = (file_split(p._image_files, p._labels) for p in parts)
    train = Split.join([first, second])
    names = [spoken(name) for name in parts[0].classes]
    return Source(names, prompts(names, templates("dtd")), train, test)
