"""ImageNet-R(endition), read from the official archive, which has no split; 15 styles are its domains."""

from __future__ import annotations

import re
from pathlib import Path

from torchvision.datasets import ImageFolder

from mergestream.data.archive import file_split, official, spoken
from mergestream.data.manifest import divide
from mergestream.data.mirror import mirrored
from mergestream.data.protocol import class_names, class_orders, domain_orders, domains, templates
from mergestream.data.source import Source, prompts
from mergestream.runtime.errors import UserError


def imagenet_r(root: str, test_fraction: float = 0.2, split_seed: int = 0, mirror: str | None = None) -> Source:
    """30,000 renditions of 200 ImageNet classes, of which a manifest keeps a fifth for the test.

    Class ids follow the names in alphabetical order, as the published class order does.

    Args:
        root: holds ``imagenet-r/<wnid>/<style>_<number>.jpg`` and ``imagenet-r/README.txt``, which names the wnids.
        test_fraction, split_seed: see `divide`.
        mirror: a dataset of the Hugging Face Hub instead, without domains.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    names = class_names("imagenet_r")
    said = prompts(names, templates("imagenet_r"))
    if mirror is not None:
        _, train, test, record = mirrored("imagenet_r", mirror, names, test_fraction, split_seed)
        return Source(names, said, train, test, class_orders("imagenet_r"), notes=record)
    folder, styles = Path(root) / "imagenet-r", domains("imagenet_r")
    with official(
        "imagenet_r", folder, root,
        archive="imagenet-r.tar", size="2.2 GB", place="github.com/hendrycks/imagenet-r", mirror=True,
    ):  # fmt: skip
        listed = re.findall(r"^(n\d{8})\s+(\S.*?)\s*$", (folder / "README.txt").read_text(), flags=re.MULTILINE)
        by_name = {name.lower(): c for c, name in enumerate(names)}
        of_wnid = {wnid: by_name[spoken(name).lower()] for wnid, name in listed if spoken(name).lower() in by_name}
        found = ImageFolder(str(folder))
    if unknown := [wnid for wnid in found.classes if wnid not in of_wnid]:
        raise UserError(f"{folder / unknown[0]} must be a class that {folder / 'README.txt'} names; it is not there")
    paths = [Path(path) for path, _ in found.samples]
    labels = [of_wnid[found.classes[label]] for label in found.targets]
    of_style = {style: d for d, style in enumerate(styles)}
    if strange := [path for path in paths if path.name.rpartition("_")[0] not in of_style]:
        raise UserError(
            f"an image of ImageNet-R is named STYLE_NUMBER.jpg, with a style of {', '.join(styles)}; got {strange[0]}"
        )
    styled = [of_style[path.name.rpartition("_")[0]] for path in paths]
    relative = [path.relative_to(folder).as_posix() for path in paths]
    train_at, test_at, record = divide(relative, labels, test_fraction=test_fraction, seed=split_seed)
    everything = file_split(paths, labels, styled)
    parts = everything.choose(train_at), everything.choose(test_at)
    return Source(
        names,
        said,
        *parts,
        class_orders=class_orders("imagenet_r"),
        domain_names=styles,
        domain_orders=domain_orders("imagenet_r"),
        notes=record,
    )
