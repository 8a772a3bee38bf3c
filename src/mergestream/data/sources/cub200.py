"""CUB-200-2011, read from the official archive."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mergestream.data.archive import archive_errors, file_split, readable_name
from mergestream.data.mirror import load_mirror
from mergestream.data.protocol import class_orders, templates
from mergestream.data.source import Source, prompts


def cub200(root: str, mirror: str | None = None) -> Source:
    """Return CUB-200-2011: 5,994 training and 5,794 test photos of 200 bird species.

    Args:
        root: has the folder ``CUB_200_2011`` with images, images.txt, image_class_labels.txt, train_test_split.txt and
            classes.txt.
        mirror: a dataset on the Hugging Face Hub to use instead of the archive.

    Raises:
        UserError: if the archive is missing or damaged.
    """
    orders = class_orders("cub200")
    if mirror is not None:
        names, train, test, record = load_mirror("cub200", mirror)
        # The published order refers to the folder numbers, so it applies only if the mirror kept them.
        orders = orders if all(re.match(rf"0*{c + 1}\.", name) for c, name in enumerate(names)) else {}
        names = [re.sub(r"^\d+\.", "", name) for name in names]
        return Source(names, prompts(names, templates("cub200")), train, test, orders, notes=record)
    folder = Path(root) / "CUB_200_2011"
    with archive_errors(
        "cub200", folder, root,
        files="CUB_200_2011.tgz", size="1.2 GB", website="vision.caltech.edu/datasets/cub_200_2011", mirror=True,
    ):  # fmt: skip
        paths, labels, is_train, classes = (
            _column(folder / f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split", "classes")
        )
        if not len(paths) == len(labels) == len(is_train):
            raise ValueError("images.txt, image_class_labels.txt and train_test_split.txt must list the same images")
        if {int(label) for label in labels} != set(range(1, len(classes) + 1)):
            raise ValueError("image_class_labels.txt must have images of exactly the classes in classes.txt")
        everything = file_split([folder / "images" / path for path in paths], [int(label) - 1 for label in labels])
    in_train = np.array([flag == "1" for flag in is_train])
    parts = everything.subset(np.flatnonzero(in_train)), everything.subset(np.flatnonzero(~in_train))
    names = [readable_name(name.partition(".")[2]) for name in classes]  # 001.Black_footed_Albatross
    return Source(names, prompts(names, templates("cub200")), *parts, orders)


def _column(path: Path) -> list[str]:
    """The text after the number of each line, sorted by that number."""
    rows = [line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip()]
    by_number = {int(number): word.strip() for number, word in rows}
    if sorted(by_number) != list(range(1, len(rows) + 1)):
        raise ValueError(f"the lines of {path.name} must be numbered from 1")
    return [by_number[number] for number in sorted(by_number)]
