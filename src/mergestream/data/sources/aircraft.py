"""FGVC-Aircraft, read by torchvision from the official archive."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import FGVCAircraft

from mergestream.data.archive import archive_errors, file_split, readable_name
from mergestream.data.protocol import templates
from mergestream.data.source import Source, prompts


def aircraft(root: str, download: bool = False, mtil: bool = False) -> Source:
    """Return FGVC-Aircraft: 6,667 training and 3,333 test photos of 100 model variants.

    Args:
        root: has the folder ``fgvc-aircraft-2013b``.
        download: whether to download the archive.
        mtil: whether the training images are those of MTIL: the official train list alone, not val too.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    with archive_errors(
        "aircraft", Path(root) / "fgvc-aircraft-2013b", root,
        files="fgvc-aircraft-2013b.tar.gz", size="2.8 GB", website="robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
        download=download,
    ):  # fmt: skip
        lists = ("train" if mtil else "trainval", "test")
        parts = [FGVCAircraft(root, split=part, download=download) for part in lists]
        if len(parts[0].classes) != 100:
            raise ValueError(f"variants.txt must list 100 variants; it has {len(parts[0].classes)}")
    train, test = (file_split(p._image_files, p._labels) for p in parts)
    names = [readable_name(name) for name in parts[0].classes]
    return Source(names, prompts(names, templates("aircraft")), train, test)
