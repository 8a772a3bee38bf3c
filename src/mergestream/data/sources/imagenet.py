"""ImageNet (ILSVRC2012), read and unpacked by torchvision from the official archives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from open_clip import IMAGENET_CLASSNAMES
from timm.data import ImageNetInfo
from torchvision.datasets import ImageNet

from mergestream.data.archive import archive_errors
from mergestream.data.images import ImageFiles
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts
from mergestream.runtime.errors import UserError


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
    names = _names(parts[0].wnids)
    return Source(names, prompts(names, templates("imagenet"), published=True), train, test)


def _names(wnids: Sequence[str]) -> list[str]:
    """Return the names that CLIP's authors gave to the synsets (Radford et al. 2021).

    The first synonym of a synset is not unique: the bird and the machine are both "crane".

    Raises:
        UserError: if a synset is not one of ILSVRC2012.
    """
    known = ImageNetInfo("imagenet-1k").label_names()
    if unknown := [wnid for wnid in wnids if wnid not in known]:
        raise UserError(f"dataset=imagenet must have the 1,000 classes of ILSVRC2012; {unknown[0]} is not one of them")
    return [IMAGENET_CLASSNAMES[known.index(wnid)] for wnid in wnids]
