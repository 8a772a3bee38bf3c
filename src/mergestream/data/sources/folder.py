"""Any directory of images with one folder per class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets import ImageFolder

from mergestream.data.archive import file_split, readable_name
from mergestream.data.manifest import Record, split_by_name
from mergestream.data.source import Source, prompts
from mergestream.runtime.errors import UserError, first_line


def folder(
    path: str, templates: Sequence[str] = ("a photo of a {}.",), test_fraction: float = 0.2, split_seed: int = 0
) -> Source:
    """Return a directory of images as a dataset, with one class per folder, named after the folder.

    Args:
        path: the directory: train/<class>/* and test/<class>/* (or val), or <class>/*, which a manifest splits.
        templates: prompts, each with ``{}`` for the class name.
        test_fraction, split_seed: see `split_by_name`.

    Raises:
        UserError: if there is no such directory, or a class has no images.
    """
    top = Path(str(path)).expanduser()
    if not top.is_dir():
        raise UserError(f"dataset.path must be a folder with one folder of images per class; got dataset.path={path}")
    if not templates or not all("{}" in str(template) for template in templates):
        raise UserError(f"dataset.templates must each have a {{}} for the class name; got {list(templates)}")
    train = top / "train"
    test = next((top / name for name in ("test", "val") if (top / name).is_dir()), None)
    record: Record = {}
    if train.is_dir() and test is not None:
        found, held_out = _classes(train), _classes(test)
        if strange := [name for name in held_out.classes if name not in found.class_to_idx]:
            raise UserError(f"{test / strange[0]} must also be a class in {train}; it is not")
        labels = [found.class_to_idx[held_out.classes[label]] for label in held_out.targets]
        parts = file_split(*_samples(found)), file_split([p for p, _ in held_out.samples], labels)
    else:
        found = _classes(top)
        if len(found.classes) < 2:
            raise UserError(
                "dataset.path must hold a folder for each class, or train and test with such folders; "
                f"{top} has only {found.classes[0]}"
            )
        paths, labels = _samples(found)
        relative = [Path(p).relative_to(top).as_posix() for p in paths]
        at_train, at_test, record = split_by_name(relative, labels, test_fraction=test_fraction, seed=split_seed)
        everything = file_split(paths, labels)
        parts = everything.subset(at_train), everything.subset(at_test)
    names = [readable_name(name) for name in found.classes]
    return Source(names, prompts(names, list(templates)), *parts, notes=record)


def _classes(path: Path) -> ImageFolder:
    try:
        return ImageFolder(str(path))
    except (OSError, RuntimeError) as error:  # no folders at all, or one without a single image
        raise UserError(f"dataset.path must hold images in every class: {first_line(error)}") from error


def _samples(found: ImageFolder) -> tuple[list[str], list[int]]:
    return [path for path, _ in found.samples], list(found.targets)
