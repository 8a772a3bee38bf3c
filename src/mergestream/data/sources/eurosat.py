"""EuroSAT, read by torchvision from the official archive, which has no split."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import EuroSAT

from mergestream.data.archive import archive_errors, file_split
from mergestream.data.manifest import split_by_draw, split_by_name
from mergestream.data.protocol import class_names_by_folder, templates
from mergestream.data.source import Source, prompts


def eurosat(
    root: str, download: bool = False, test_fraction: float = 0.1, split_seed: int = 0, mtil: bool = False
) -> Source:
    """Return EuroSAT: 27,000 satellite images of 64 px in 10 classes, split by a manifest (see `split_by_name`).

    With `mtil`, the split is that of MTIL: 21,600 training and 5,400 test images (`split_by_draw`).

    Raises:
        UserError: if the archive is missing or damaged.
    """
    folder, known = Path(root) / "eurosat" / "2750", class_names_by_folder("eurosat")
    with archive_errors(
        "eurosat", folder, root,
        files="EuroSAT.zip", size="94 MB", website="github.com/phelber/EuroSAT", download=download, folder="eurosat",
    ):  # fmt: skip
        found = EuroSAT(root, download=download)
        if found.classes != sorted(known):
            raise ValueError(f"its folders must be {', '.join(sorted(known))}")
    paths, labels = zip(*found.samples, strict=True)
    names = [known[name] for name in found.classes]
    relative = [Path(path).relative_to(folder).as_posix() for path in paths]
    if mtil:
        train, test, record = split_by_draw(relative)
    else:
        train, test, record = split_by_name(relative, labels, test_fraction=test_fraction, seed=split_seed)
    everything = file_split(paths, labels)
    parts = everything.subset(train), everything.subset(test)
    return Source(names, prompts(names, templates("eurosat")), *parts, notes=record)
