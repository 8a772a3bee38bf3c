"""Oxford Flowers 102, read by torchvision from the official archive."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import Flowers102

from mergestream.data.archive import archive_errors, file_split
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def flowers102(root: str, download: bool = False, mtil: bool = False) -> Source:
    """Return Oxford Flowers 102: 2,040 training and 6,149 test photos of 102 flower species.

    The training images are the official train and val sets; with `mtil`, as in MTIL, train alone.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    with archive_errors(
        "flowers102", Path(root) / "flowers-102", root,
        files="102flowers.tgz, and imagelabels.mat and setid.mat as they are,", size="345 MB",
        website="robots.ox.ac.uk/~vgg/data/flowers/102", download=download, folder="flowers-102",
    ):  # fmt: skip
        parts = [Flowers102(root, split=part, download=download) for part in ("train", "val", "test")]
    first, second, test = (file_split(p._image_files, p._labels) for p in parts)
    train = first if mtil else Split.concat([first, second])
    names = list(Flowers102.classes)
    return Source(names, prompts(names, templates("flowers102")), train, test)
