"""Oxford-IIIT Pet, read by torchvision from the official archive."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import OxfordIIITPet

from mergestream.data.archive import file_split, official
from mergestream.data.protocol import templates
from mergestream.data.source import Source, prompts


def oxford_pets(root: str, download: bool = False) -> Source:
    """3,680 + 3,669 photos of 37 breeds of cats and dogs.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    with official(
        "oxford_pets", Path(root) / "oxford-iiit-pet", root,
        archive="images.tar.gz and annotations.tar.gz", size="811 MB", place="robots.ox.ac.uk/~vgg/data/pets",
        download=download, into="oxford-iiit-pet",
    ):  # fmt: skip
        parts = [OxfordIIITPet(root, split=part, download=download) for part in ("trainval", "test")]
        names = list(parts[0].classes)  # of the breeds that are listed
        if not all(set(p._labels) == set(range(len(names))) for p in parts):
            raise ValueError("the lists of trainval and test must have the same breeds")
    train, test = (file_split(p._images, p._labels) for p in parts)
    return Source(names, prompts(names, templates("oxford_pets")), train, test)
