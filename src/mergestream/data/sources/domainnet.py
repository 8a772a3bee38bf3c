"""DomainNet, read from the official archives and their lists of training and test images."""

from __future__ import annotations

from pathlib import Path

from mergestream.data.archive import archive_errors, file_split, readable_name
from mergestream.data.mirror import load_mirror
from mergestream.data.protocol import class_names, class_orders, domain_orders, domains, templates
from mergestream.data.source import Source, Split, prompts


def domainnet(root: str, mirror: str | None = None) -> Source:
    """Return DomainNet: 409,832 training and 176,743 test images of 345 classes in 6 domains.

    Args:
        root: has ``domainnet/<domain>/<class>/*.jpg``, ``domainnet/<domain>_train.txt`` and ``<domain>_test.txt``.
        mirror: a dataset on the Hugging Face Hub to use instead of the archive; it has no domains.

    Raises:
        UserError: if the archives are missing or damaged.
    """
    names, order = class_names("domainnet"), class_orders("domainnet")
    class_prompts = prompts(names, templates("domainnet"))
    if mirror is not None:
        _, train, test, record = load_mirror("domainnet", mirror, names)
        return Source(names, class_prompts, train, test, order, notes=record)
    folder, kinds = Path(root) / "domainnet", domains("domainnet")
    with archive_errors(
        "domainnet", folder, root,
        files="the six domains' zip files, cleaned version, and their train and test lists", size="18 GB",
        website="ai.bu.edu/M3SDA", mirror=True, folder="domainnet",
    ):  # fmt: skip
        train, test = (_split(folder, kinds, names, part) for part in ("train", "test"))
    return Source(names, class_prompts, train, test, order, kinds, domain_orders("domainnet"))


def _split(folder: Path, kinds: list[str], names: list[str], part: str) -> Split:
    # The folder names the class: the numbers in the lists follow a different order from the protocol's.
    ids = {name: c for c, name in enumerate(names)}
    lines = [
        (line.rsplit(maxsplit=1)[0], d)
        for d, kind in enumerate(kinds)
        for line in (folder / f"{kind}_{part}.txt").read_text().splitlines()
        if line.strip()
    ]
    labels = [ids[readable_name(path.split("/")[1])] for path, _ in lines]
    return file_split([folder / path for path, _ in lines], labels, [d for _, d in lines])
