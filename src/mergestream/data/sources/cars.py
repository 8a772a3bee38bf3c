"""Stanford Cars, read by torchvision from the official archives, whose download is gone."""

from __future__ import annotations

from pathlib import Path

from torchvision.datasets import StanfordCars

from mergestream.data.archive import file_split, official
from mergestream.data.mirror import mirrored
from mergestream.data.protocol import templates
from mergestream.data.source import Source, prompts


def cars(root: str, mirror: str | None = None) -> Source:
    """8,144 + 8,041 photos of 196 cars.

    Args:
        root: holds ``stanford_cars`` with devkit, cars_train, cars_test and cars_test_annos_withlabels.mat.
        mirror: a dataset of the Hugging Face Hub instead.

    Raises:
        UserError: if the archives are missing or damaged.
    """
    if mirror is not None:
        names, train, test, record = mirrored("cars", mirror)
        return Source(names, prompts(names, templates("cars")), train, test, notes=record)
    with official(
        "cars", Path(root) / "stanford_cars", root,
        archive="cars_train.tgz, cars_test.tgz, car_devkit.tgz and cars_test_annos_withlabels.mat", size="1.9 GB",
        place="a copy of ai.stanford.edu/~jkrause/cars, where they are gone", mirror=True, into="stanford_cars",
    ):  # fmt: skip
        parts = [StanfordCars(root, split=part) for part in ("train", "test")]
    train, test = (file_split(*zip(*p._samples, strict=True)) for p in parts)
    names = list(parts[0].classes)
    return Source(names, prompts(names, templates("cars")), train, test)
