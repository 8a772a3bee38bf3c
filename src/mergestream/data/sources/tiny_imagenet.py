"""Tiny ImageNet, read from the official archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets import ImageFolder
from torchvision.datasets.utils import download_and_extract_archive

from mergestream.data.archive import archive_errors, file_split
from mergestream.data.protocol import templates
from mergestream.data.source import Source, prompts

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


def tiny_imagenet(root: str, download: bool = False) -> Source:
    """Return Tiny ImageNet: 100,000 training and 10,000 test photos of 64 px in 200 classes of ImageNet.

    The test images are the official validation set, because the labels of the official test set are not public.

    Args:
        root: has the folder ``tiny-imagenet-200`` with train, val, wnids.txt and words.txt.
        download: whether to download a missing archive.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    folder = Path(root) / "tiny-imagenet-200"
    with archive_errors(
        "tiny_imagenet", folder, root,
        files="tiny-imagenet-200.zip", size="248 MB", website="cs231n.stanford.edu", download=download,
    ):  # fmt: skip
        if download and not folder.exists():
            download_and_extract_archive(URL, root, md5=MD5)
        train = ImageFolder(str(folder / "train"))
        words = dict(line.split("\t", 1) for line in (folder / "words.txt").read_text().splitlines())
        names = _names([words[wnid] for wnid in train.classes])
        rows = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
        paths = [folder / "val" / "images" / row[0] for row in rows]
        labels = [train.class_to_idx[row[1]] for row in rows]
    parts = file_split([path for path, _ in train.samples], train.targets), file_split(paths, labels)
    return Source(names, prompts(names, templates("tiny_imagenet")), *parts)


def _names(synonyms: Sequence[str]) -> list[str]:
    """Return the first synonym of each synset, or all of them where another synset has the same first one."""
    firsts = [words.split(",")[0].strip() for words in synonyms]
    return [words if firsts.count(first) > 1 else first for first, words in zip(firsts, synonyms, strict=True)]
