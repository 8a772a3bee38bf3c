"""Oxford-IIIT Pet, read by torchvision from the official archive."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import OxfordIIITPet

from mergestream.data.archive import archive_errors, file_split
from mergestream.data.protocol import templates
from mergestream.data.source import Source, prompts


def oxford_pets(root: str, download: bool = False) -> Source:
    """Return Oxford-IIIT Pet: 3,680 training and 3,669 test photos of 37 breeds of cats and dogs.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    with archive_errors(
        "oxford_pets", Path(root) / "oxford-iiit-pet", root,
        files="images.tar.gz and annotations.tar.gz", size="811 MB", website="robots.ox.ac.uk/~vgg/data/pets",
        download=download, folder="oxford-iiit-pet",
    ):  # fmt: skip
        parts = [OxfordIIITPet(root, split=part, download=download) for part in ("trainval", "test")]
        names = list(parts[0].classes)  # only the breeds that the lists have
        if not all(set(p._labels) == set(range(len(names))) for p in parts):
            raise ValueError("the lists of trainval and test must have the same breeds")
    train, test = (file_split(p._images, p._labels) for p in parts)
    return Source(names, prompts(names, templates("oxford_pets")), train, test)
