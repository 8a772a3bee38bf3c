"""Rendered SST2, read by torchvision from the official archive."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import RenderedSST2

from mergestream.data.archive import archive_errors, file_split
from mergestream.data.protocol import templates
from mergestream.data.source import Source, Split, prompts


def rendered_sst2(root: str, download: bool = False) -> Source:
    """Return Rendered SST2: 7,792 training and 1,821 test images of film reviews, negative or positive.

    The training images are the official train and val sets.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    with archive_errors(
        "rendered_sst2", Path(root) / "rendered-sst2", root,
        files="rendered-sst2.tgz", size="112 MB", website="openaipublic.azureedge.net/clip/data", download=download,
    ):  # fmt: skip
        parts = [RenderedSST2(root, split=part, download=download) for part in ("train", "val", "test")]
    first, second, test = (file_split(*zip(*p._samples, strict=True)) for p in parts)
    train = Split.concat([first, second])
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("rendered_sst2")), train, test)
