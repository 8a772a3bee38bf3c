"""Describable Textures, read by torchvision from the official archive."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import DTD

from mergestream.data.archive import archive_errors, file_split, readable_name
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts
from mergestream.runtime.rules import require_whole


def dtd(root: str, download: bool = False, partition: int = 1, mtil: bool = False) -> Source:
    """Return Describable Textures: 3,760 training and 1,880 test images of 47 textures.

    The training images are the official train and val lists of a partition; with `mtil`, as in MTIL, train alone.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    require_whole("dataset.partition", partition, 1, 10)
    with archive_errors(
        "dtd", Path(root) / "dtd/dtd", root,
        files="dtd-r1.0.1.tar.gz", size="625 MB", website="robots.ox.ac.uk/~vgg/data/dtd", download=download,
        folder="dtd",
    ):  # fmt: skip
        parts = [DTD(root, split=part, partition=partition, download=download) for part in ("train", "val", "test")]
        if not all(p.classes == parts[0].classes for p in parts):  # each list numbers its own classes
            raise ValueError("the lists of train, val and test must have the same classes")
    first, second, test = (file_split(p._image_files, p._labels) for p in parts)
    train = first if mtil else Split.concat([first, second])
    names = [readable_name(name) for name in parts[0].classes]
    return Source(names, prompts(names, templates("dtd")), train, test)
