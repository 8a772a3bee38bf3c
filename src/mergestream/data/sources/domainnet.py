"""DomainNet, read from the official archives and their lists of train and test images."""

from __future__ import annotations

from pathlib import Path

from mergestream.data.archive import file_split, official, spoken
from mergestream.data.mirror import mirrored
from mergestream.data.protocol import class_names, class_orders, domain_orders, domains, templates
from mergestream.data.source import Source, Split, prompts


def domainnet(root: str, mirror: str | None = None) -> Source:
    """409,832 + 176,743 images of 345 classes in 6 domains.

    Args:
        root: holds ``domainnet/<domain>/<class>/*.jpg`` and ``domainnet/<domain>_train.txt``, ``<domain>_test.txt``.
        mirror: a dataset of the Hugging Face Hub instead, without domains.

    Raises:
        UserError: if the archives are missing or damaged.
    """
    names, order = class_names("domainnet"), class_orders("domainnet")
    said = prompts(names, templates("domainnet"))
    if mirror is not None:
        _, train, test, record = mirrored("domainnet", mirror, names)
        return Source(names, said, train, test, order, notes=record)
    folder, kinds = Path(root) / "domainnet", domains("domainnet")
    with official(
        "domainnet", folder, root,
        archive="the six domains' zip files, cleaned version, and their train and test lists", size="18 GB",
        place="ai.bu.edu/M3SDA", mirror=True, into="domainnet",
    ):  # fmt: skip
        train, test = (_split(folder, kinds, names, part) for part in ("train", "test"))
    return Source(names, said, train, test, order, kinds, domain_orders("domainnet"))


def _split(folder: Path, kinds: list[str], names: list[str], part: str) -> Split:
    # The class is the folder's: the numbers in the lists follow another order than the protocol's names.
    ids = {name: c for c, name in enumerate(names)}
    lines = [
        (line.rsplit(maxsplit=1)[0], d)
        for d, kind in enumerate(kinds)
        for line in (folder / f"{kind}_{part}.txt").read_text().splitlines()
        if line.strip()
    ]
    labels = [ids[spoken(path.split("/")[1])] for path, _ in lines]
    return file_split([folder / path for path, _ in lines], labels, [d for _, d in lines])
