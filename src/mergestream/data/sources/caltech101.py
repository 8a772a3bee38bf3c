"""Caltech101, read by torchvision from the official archive, which has no split."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import Caltech101

from mergestream.data.archive import archive_errors, file_split
from mergestream.data.manifest import split_by_draw
from mergestream.data.protocol import class_names_by_folder, templates
from mergestream.data.source import Source, prompts


def caltech101(root: str, download: bool = False) -> Source:
    """Return Caltech101: 6,941 training and 1,736 test photos of 101 categories, split as in MTIL (`split_by_draw`).

    Raises:
        UserError: if the archive is missing or damaged.
    """
    folder, known = Path(root) / "caltech101" / "101_ObjectCategories", class_names_by_folder("caltech101")
    with archive_errors(
        "caltech101", folder, root,
        files="caltech-101.zip and 101_ObjectCategories.tar.gz in it", size="137 MB",
        website="data.caltech.edu/records/mzrjq-6wc02", download=download, folder="caltech101",
    ):  # fmt: skip
        if not download and not folder.is_dir():
            raise FileNotFoundError(folder)  # torchvision would make an empty folder
        found = Caltech101(root, download=download)
        if found.categories != sorted(known):
            raise ValueError("its folders must be the 101 categories and BACKGROUND_Google")
    relative = [f"{found.categories[c]}/image_{n:04d}.jpg" for c, n in zip(found.y, found.index, strict=True)]
    train, test, record = split_by_draw(relative)
    everything = file_split([folder / name for name in relative], found.y)
    names = [known[name] for name in found.categories]
    parts = everything.subset(train), everything.subset(test)
    return Source(names, prompts(names, templates("caltech101")), *parts, notes=record)
