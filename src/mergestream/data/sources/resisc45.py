"""NWPU-RESISC45, read from the official archive, which has no split."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import ImageFolder

from mergestream.data.archive import archive_errors, file_split, readable_name
from mergestream.data.manifest import split_by_name
from mergestream.data.mirror import load_mirror
from mergestream.data.protocol import class_names, templates
from mergestream.data.source import Source, prompts


def resisc45(root: str, test_fraction: float = 0.2, split_seed: int = 0, mirror: str | None = None) -> Source:
    """Return NWPU-RESISC45: 31,500 aerial images of 256 px in 45 classes, split by a manifest (see `split_by_name`).

    Args:
        root: has ``NWPU-RESISC45/<class>/<class>_001.jpg``.
        test_fraction, split_seed: see `split_by_name`.
        mirror: a dataset on the Hugging Face Hub to use instead of the archive.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    names = class_names("resisc45")
    if mirror is not None:
        _, train, test, record = load_mirror("resisc45", mirror, names, test_fraction, split_seed)
        return Source(names, prompts(names, templates("resisc45")), train, test, notes=record)
    folder = Path(root) / "NWPU-RESISC45"
    with archive_errors(
        "resisc45", folder, root,
        files="NWPU-RESISC45.rar", size="427 MB", website="gcheng-nwpu.github.io", mirror=True,
    ):  # fmt: skip
        found = ImageFolder(str(folder))
        labels = [names.index(readable_name(found.classes[label])) for label in found.targets]
    paths = [path for path, _ in found.samples]
    relative = [Path(path).relative_to(folder).as_posix() for path in paths]
    train_at, test_at, record = split_by_name(relative, labels, test_fraction=test_fraction, seed=split_seed)
    everything = file_split(paths, labels)
    parts = everything.subset(train_at), everything.subset(test_at)
    return Source(names, prompts(names, templates("resisc45")), *parts, notes=record)
