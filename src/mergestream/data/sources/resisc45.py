"""NWPU-RESISC45, read from the official archive, which has no split."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import ImageFolder

from mergestream.data.archive import file_split, official, spoken
from mergestream.data.manifest import divide
from mergestream.data.mirror import mirrored
from mergestream.data.protocol import class_names, templates
from mergestream.data.source import Source, prompts


def resisc45(root: str, test_fraction: float = 0.2, split_seed: int = 0, mirror: str | None = None) -> Source:
    """31,500 aerial images of 256 px in 45 classes, of which a manifest keeps a fifth for the test.

    Args:
        root: holds ``NWPU-RESISC45/<class>/<class>_001.jpg``.
        test_fraction, split_seed: see `divide`.
        mirror: a dataset of the Hugging Face Hub instead.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    names = class_names("resisc45")
    if mirror is not None:
        _, train, test, record = mirrored("resisc45", mirror, names, test_fraction, split_seed)
        return Source(names, prompts(names, templates("resisc45")), train, test, notes=record)
    folder = Path(root) / "NWPU-RESISC45"
    with official(
        "resisc45", folder, root,
        archive="NWPU-RESISC45.rar", size="427 MB", place="gcheng-nwpu.github.io", mirror=True,
    ):  # fmt: skip
        found = ImageFolder(str(folder))
        labels = [names.index(spoken(found.classes[label])) for label in found.targets]
    paths = [path for path, _ in found.samples]
    relative = [Path(path).relative_to(folder).as_posix() for path in paths]
    train_at, test_at, record = divide(relative, labels, test_fraction=test_fraction, seed=split_seed)
    everything = file_split(paths, labels)
    parts = everything.choose(train_at), everything.choose(test_at)
    return Source(names, prompts(names, templates("resisc45")), *parts, notes=record)
