"""ImageNet-R(endition), read from the official archive, which has no split; its domains are 15 styles."""

from __future__ import annotations

import re
from pathlib import Path

from torchvision.datasets import ImageFolder

from mergestream.data.archive import archive_errors, file_split, readable_name
from mergestream.data.manifest import split_by_name
from mergestream.data.mirror import load_mirror
from mergestream.data.protocol import class_names, class_orders, domain_orders, domains, templates
from mergestream.data.source import Source, prompts
from mergestream.runtime.errors import UserError


def imagenet_r(root: str, test_fraction: float = 0.2, split_seed: int = 0, mirror: str | None = None) -> Source:
    """Return ImageNet-R: 30,000 renditions of 200 ImageNet classes, split by a manifest (see `split_by_name`).

    Class ids follow the alphabetical order of the names, as the published class order does.

    Args:
        root: has ``imagenet-r/<wnid>/<style>_<number>.jpg`` and ``imagenet-r/README.txt``, which lists the wnids.
        test_fraction, split_seed: see `split_by_name`.
        mirror: a dataset on the Hugging Face Hub to use instead of the archive; it has no domains.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    names = class_names("imagenet_r")
    class_prompts = prompts(names, templates("imagenet_r"))
    if mirror is not None:
        _, train, test, record = load_mirror("imagenet_r", mirror, names, test_fraction, split_seed)
        return Source(names, class_prompts, train, test, class_orders("imagenet_r"), notes=record)
    folder, styles = Path(root) / "imagenet-r", domains("imagenet_r")
    with archive_errors(
        "imagenet_r", folder, root,
        files="imagenet-r.tar", size="2.2 GB", website="github.com/hendrycks/imagenet-r", mirror=True,
    ):  # fmt: skip
        listed = re.findall(r"^(n\d{8})\s+(\S.*?)\s*$", (folder / "README.txt").read_text(), flags=re.MULTILINE)
        by_name = {name.lower(): c for c, name in enumerate(names)}
        of_wnid = {
            wnid: by_name[readable_name(name).lower()]
            for wnid, name in listed
            if readable_name(name).lower() in by_name
        }
        found = ImageFolder(str(folder))
    if unknown := [wnid for wnid in found.classes if wnid not in of_wnid]:
        raise UserError(f"{folder / unknown[0]} must be a class that {folder / 'README.txt'} lists; it is not")
    paths = [Path(path) for path, _ in found.samples]
    labels = [of_wnid[found.classes[label]] for label in found.targets]
    of_style = {style: d for d, style in enumerate(styles)}
    if strange := [path for path in paths if path.name.rpartition("_")[0] not in of_style]:
        raise UserError(
            f"images of ImageNet-R must be named STYLE_NUMBER.jpg, with a style from {', '.join(styles)}; "
            f"got {strange[0]}"
        )
    style_ids = [of_style[path.name.rpartition("_")[0]] for path in paths]
    relative = [path.relative_to(folder).as_posix() for path in paths]
    train_at, test_at, record = split_by_name(relative, labels, test_fraction=test_fraction, seed=split_seed)
    everything = file_split(paths, labels, style_ids)
    parts = everything.subset(train_at), everything.subset(test_at)
    return Source(
        names,
        class_prompts,
        *parts,
        class_orders=class_orders("imagenet_r"),
        domain_names=styles,
        domain_orders=domain_orders("imagenet_r"),
        notes=record,
    )
