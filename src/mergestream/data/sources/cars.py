"""Stanford Cars, read by torchvision from the official archives, which are no longer online."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import StanfordCars

from mergestream.data.archive import archive_errors, file_split
from mergestream.data.mirror import load_mirror
from mergestream.data.protocol import templates
from mergestream.data.source import Source, prompts


def cars(root: str, mirror: str | None = None) -> Source:
    """Return Stanford Cars: 8,144 training and 8,041 test photos of 196 car models.

    Args:
        root: has the folder ``stanford_cars`` with devkit, cars_train, cars_test and cars_test_annos_withlabels.mat.
        mirror: a dataset on the Hugging Face Hub to use instead of the archive.

    Raises:
        UserError: if the archives are missing or damaged.
    """
    if mirror is not None:
        names, train, test, record = load_mirror("cars", mirror)
        return Source(names, prompts(names, templates("cars")), train, test, notes=record)
    with archive_errors(
        "cars", Path(root) / "stanford_cars", root,
        files="cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat", size="1.9 GB",
        website="a copy of ai.stanford.edu/~jkrause/cars (which is offline)", mirror=True, folder="stanford_cars",
    ):  # fmt: skip
        parts = [StanfordCars(root, split=part) for part in ("train", "test")]
    train, test = (file_split(*zip(*p._samples, strict=True)) for p in parts)
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("cars")), train, test)
