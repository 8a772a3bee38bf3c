"""ImageNet (ILSVRC2012), read and unpacked by torchvision from the official archives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torchvision.datasets import ImageNet

from mergestream.data.archive import archive_errors
from mergestream.data.images import ImageFiles
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def imagenet(root: str) -> Source:
    """Return ImageNet: 1,281,167 training photos of 1,000 classes, and the 50,000 validation photos as the test set.

    Args:
        root: has the folder ``imagenet`` with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and
            ILSVRC2012_devkit_t12.tar.gz, or with what torchvision unpacked from them: train, val and meta.bin.

    Raises:
        UserError: if the archives are missing or damaged.
    """
    folder = Path(root) / "imagenet"
    with archive_errors(
        "imagenet", folder, root,
        files="ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz", size="144 GB",
        website="image-net.org/challenges/LSVRC/2012", folder="imagenet", unpack=False,
    ):  # fmt: skip
        parts = [ImageNet(str(folder), split=part) for part in ("train", "val")]
        if parts[0].wnids != parts[1].wnids:  # each split numbers its own folders
            raise ValueError("train and val must have the same folders")
    # Not `file_split`, which checks that each file exists: torchvision has just listed them.
    train, test = (Split(ImageFiles([p for p, _ in s.samples]), np.array(s.targets, dtype=np.int64)) for s in parts)
    names = [synonyms[0] for synonyms in parts[0].classes]
    return Source(names, prompts(names, templates("imagenet")), train, test)
