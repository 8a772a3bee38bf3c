"""EuroSAT, read by torchvision from the official archive, which has no split."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import EuroSAT

from mergestream.data.archive import file_split, official
from mergestream.data.manifest import divide
from mergestream.data.protocol import class_names, templates
from mergestream.data.source import Source, prompts


def eurosat(root: str, download: bool = False, test_fraction: float = 0.1, split_seed: int = 0) -> Source:
    """27,000 satellite images of 64 px in 10 classes, of which a manifest keeps a tenth for the test.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    folder, known = Path(root) / "eurosat" / "2750", class_names("eurosat")
    with official(
        "eurosat", folder, root,
        archive="EuroSAT.zip", size="94 MB", place="github.com/phelber/EuroSAT", download=download, into="eurosat",
    ):  # fmt: skip
        found = EuroSAT(root, download=download)
        if found.classes != sorted(known):
            raise ValueError(f"its folders must be {', '.join(sorted(known))}")
    paths, labels = zip(*found.samples, strict=True)
    names = [known[name] for name in found.classes]
    relative = [Path(path).relative_to(folder).as_posix() for path in paths]
    train, test, record = divide(relative, labels, test_fraction=test_fraction, seed=split_seed)
    everything = file_split(paths, labels)
    parts = everything.choose(train), everything.choose(test)
    return Source(names, prompts(names, templates("eurosat")), *parts, notes=record)
