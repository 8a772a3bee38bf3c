"""German Traffic Signs (GTSRB), read by torchvision from the official archive."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import GTSRB

from mergestream.data.archive import archive_errors, file_split
from mergestream.data.protocol import class_names, templates
from mergestream.data.source import Source, prompts


def gtsrb(root: str, download: bool = False) -> Source:
    """Return GTSRB: 26,640 training and 12,630 test photos of 43 traffic signs.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    names = class_names("gtsrb")
    with archive_errors(
        "gtsrb", Path(root) / "gtsrb", root,
        files="GTSRB-Training_fixed.zip, GTSRB_Final_Test_Images.zip and GTSRB_Final_Test_GT.zip", size="276 MB",
        website="benchmark.ini.rub.de", download=download, folder="gtsrb",
    ):  # fmt: skip
        parts = [GTSRB(root, split=part, download=download) for part in ("train", "test")]
        # Torchvision numbers the folders that exist: if one is missing, all later classes shift.
        if {label for _, label in parts[0]._samples} != set(range(len(names))):
            raise ValueError(f"GTSRB/Training must have a folder for each of {len(names)} classes")
    train, test = (file_split(*zip(*p._samples, strict=True)) for p in parts)
    return Source(names, prompts(names, templates("gtsrb")), train, test)
