"""Any directory of images with one folder per class, or a folder per task with one folder per class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

from mergestream.data.listing import (
    find_folders,
    find_pictures,
    find_splits,
    first_picture,
    kind_of_split,
    list_classes,
)
from mergestream.data.parts import Files, Part, joined, natural_key
from mergestream.data.source import Source
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_choice


def folder(
    path: str,
    templates: Sequence[str] = ("a photo of a {}.",),
    test_fraction: float = 0.2,
    split_seed: int = 0,
    layout: str = "classes",
    trained: Collection[str] = (),
) -> Source:
    """Return a directory of images as a dataset, with one class per folder, named after the folder.

    Args:
        path: the directory: <split>/<class>/* with the splits train and test (or val), or <class>/*, which a manifest
            splits.
        templates: prompts, each with ``{}`` for the class name.
        test_fraction, split_seed: see `split_by_name`.
        layout: ``classes``; or ``tasks``, where the directory has a folder of that kind for each task, in the order of
            `natural_key`. Classes of the same name are one class, and tasks are the domains of the dataset.
        trained: names of tasks of which any part may be gone; all of their images are training images.

    Raises:
        UserError: if there is no such directory, its splits are incomplete, two classes share a prompt, or a class has
            no images.
    """
    require_choice("dataset.layout", layout, ("classes", "tasks"))
    top = Path(str(path)).expanduser()
    if not top.is_dir():
        what = "one folder of images per class" if layout == "classes" else "a folder per task, with one per class"
        raise UserError(f"dataset.path must be a folder with {what}; got dataset.path={path}")
    read = partial(_part, top, test_fraction=test_fraction, split_seed=split_seed)
    skipped: Counter[str] = Counter()
    if layout == "classes":
        parts = [read("", skipped=skipped)]
    else:
        classes = set[str]()
        parts = [
            _remains(top, name, classes) if name in trained else read(name, skipped=skipped)
            for name in _tasks(top, trained)
        ]
        _require_training(top, parts, classes)
    _report_skipped(skipped)
    return joined(parts, templates)


def _tasks(top: Path, trained: Collection[str]) -> list[str]:
    """Return the names of the task folders, in order.

    Args:
        top: the folder of all.
        trained: names of tasks that may be gone.

    Raises:
        UserError: if there are none, they are splits, one has pictures without a class, or its name is not text.
    """
    names = sorted(find_folders(top), key=natural_key)
    if not names and not trained:
        raise UserError(f"dataset.path must hold a folder for each task, with a folder for each class; {top} has none")
    if names and all(map(kind_of_split, names)):
        raise UserError(
            f"dataset.path must hold a folder for each task, with a folder for each class; {top} has "
            f"{', '.join(names)}, which are splits. Put them into a folder of their own, or write stream=class"
        )
    for name in names:
        if not name.isprintable():
            raise UserError(f"a task folder must have a readable name; got {top / name}. Rename it")
        if (picture := first_picture(top / name)) is not None:
            raise UserError(
                f"{top / name} must hold a folder of images for each class of its task; it has {picture} itself. "
                "Move its images into a folder, or write stream=class if the folders are classes"
            )
    return names


def _part(
    top: Path,
    name: str,
    *,
    skipped: Counter[str],
    test_fraction: float,
    split_seed: int,
) -> Part:
    """Return the files of the task `name`, or of all of `top` if it is empty.

    Args:
        top: the folder of all.
        name: of the task.
        skipped: counts the files that are no pictures, by extension.
        test_fraction, split_seed: see `split_by_name`.

    Raises:
        UserError: if the splits are incomplete, or, where there are no tasks, a class has no training images.
    """
    here = top / name
    splits = find_splits(here)
    if splits is None:
        listing = list_classes(here)
        skipped.update(listing.skipped)
        if not name and len(set(listing.classes)) < 2:
            raise UserError(
                "dataset.path must hold a folder for each class, or train and test with such folders; "
                f"{here} has only {listing.classes[0]}"
            )
        names = [Path(path).relative_to(top).as_posix() for path in listing.paths]
        return Part(name, *Files(listing.paths, listing.classes).divided(names, test_fraction, split_seed))
    trained, tested = map(list_classes, splits)
    skipped.update(trained.skipped + tested.skipped)
    if not name and (strange := sorted({*tested.classes} - {*trained.classes})):
        raise UserError(f"{splits[1] / strange[0]} must also be a class in {splits[0]}; it is not")
    return Part(name, Files(trained.paths, trained.classes), Files(tested.paths, tested.classes), {})


def _remains(top: Path, name: str, classes: set[str]) -> Part:
    """Return the images that are left of a trained task.

    Args:
        top: the folder of all tasks.
        name: of the task.
        classes: gets the names of its class folders, which may be empty.
    """
    kinds = {kind_of_split(folder): folder for folder in find_folders(top / name)}
    splits = [kinds.get("train"), kinds.get("test", kinds.get("validation"))]
    found = Files([], [])
    for here in [top / name / split for split in splits if split is not None] or [top / name]:
        for folder in find_folders(here):
            paths = list(find_pictures(here / folder))
            found = Files(found.paths + paths, found.classes + [folder] * len(paths))
            classes.add(folder)
    return Part(name, found, Files([], []), {})


def _require_training(top: Path, parts: Sequence[Part], known: Collection[str]) -> None:
    """Check that every class that is tested has training images; the `known` ones had them."""
    trained = {name for part in parts for name in part.train.classes} | set(known)
    for part in parts:
        if strange := sorted({*part.test.classes} - trained):
            raise UserError(
                f"a class must have training images in a task of {top}; {strange[0]} has only test images, in task "
                f"{part.name}"
            )


def _report_skipped(skipped: Counter[str]) -> None:
    if skipped:
        counts = ", ".join(f"{count} of {extension}" for extension, count in sorted(skipped.items()))
        processes.say(f"dataset.path: skipped files that are not images: {counts}")
