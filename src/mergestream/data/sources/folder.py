"""Any directory of images with one folder per class."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mergestream.data.archive import readable_name
from mergestream.data.decode import extensions
from mergestream.data.images import ImageFiles
from mergestream.data.manifest import split_by_name
from mergestream.data.source import Source, Split, prompts
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError

# Names of the folders of a split, in any case.
TRAIN = ("train", "training")
TEST = ("test", "testing")
VALIDATION = ("val", "valid", "validation", "dev")
IGNORED = "__MACOSX"  # what macOS puts into archives; names that begin with a dot are ignored, too


@dataclass(frozen=True)
class Listing:
    """The picture files below a folder of classes.

    Args:
        classes: the names of the folders, sorted.
        paths: of the files, class by class, sorted.
        labels: the position in `classes` of each file.
        skipped: how many files were left out because of their extension, by extension.
    """

    classes: list[str]
    paths: list[str]
    labels: list[int]
    skipped: Counter[str]


def folder(
    path: str, templates: Sequence[str] = ("a photo of a {}.",), test_fraction: float = 0.2, split_seed: int = 0
) -> Source:
    """Return a directory of images as a dataset, with one class per folder, named after the folder.

    Args:
        path: the directory: <split>/<class>/* with the splits train and test (or val), or <class>/*, which a manifest
            splits.
        templates: prompts, each with ``{}`` for the class name.
        test_fraction, split_seed: see `split_by_name`.

    Raises:
        UserError: if there is no such directory, its splits are incomplete, two classes share a prompt, or a class has
            no images.
    """
    top = Path(str(path)).expanduser()
    if not top.is_dir():
        raise UserError(f"dataset.path must be a folder with one folder of images per class; got dataset.path={path}")
    splits = _splits(top)
    record: dict[str, Any] = {}
    if splits is not None:
        listings = [_list(split) for split in splits]
        classes = listings[0].classes
        train, test = _matched(splits, listings)
    else:
        listings = [_list(top)]
        classes = listings[0].classes
        if len(classes) < 2:
            raise UserError(
                "dataset.path must hold a folder for each class, or train and test with such folders; "
                f"{top} has only {classes[0]}"
            )
        paths, labels = listings[0].paths, listings[0].labels
        relative = [Path(p).relative_to(top).as_posix() for p in paths]
        at_train, at_test, record = split_by_name(relative, labels, test_fraction=test_fraction, seed=split_seed)
        everything = _split(paths, labels)
        train, test = everything.subset(at_train), everything.subset(at_test)
    _report_skipped(sum((listing.skipped for listing in listings), Counter()))
    names = [readable_name(name) for name in classes]
    return Source(names, prompts(names, list(templates), folders=classes), train, test, notes=record)


def _splits(top: Path) -> tuple[Path, Path] | None:
    """Return the folders of the training and the test split; None if the folders are classes.

    Raises:
        UserError: if some folders are named like splits, but not all of them, or not both splits are there.
    """
    folders = _folders(top)
    found = {
        kind: [name for name in folders if name.lower() in names]
        for kind, names in (("train", TRAIN), ("test", TEST), ("validation", VALIDATION))
    }
    named = [name for names in found.values() for name in names]
    if not named:
        return None
    others = [name for name in folders if name not in named and any(_files(top / name, Counter()))]
    tests = found["test"] or found["validation"]
    twice = next((names for names in found.values() if len(names) > 1), [])
    if twice or others or not found["train"] or not tests:
        raise UserError(
            f"dataset.path must hold only classes, or only one train and one test (or validation) folder; {top} has "
            f"{', '.join(twice or [*named, *others[:1]])}. Rename or move what is not a split"
        )
    if found["test"] and found["validation"]:
        name = found["validation"][0]
        processes.say(f"{top / name} is not used; stream.validation=0.1 takes validation images from train")
    return top / found["train"][0], top / tests[0]


def _matched(splits: Sequence[Path], listings: Sequence[Listing]) -> tuple[Split, Split]:
    """Return the training and the test split with the class ids of the training split."""
    trained, tested = listings
    if strange := [name for name in tested.classes if name not in trained.classes]:
        raise UserError(f"{splits[1] / strange[0]} must also be a class in {splits[0]}; it is not")
    ids = [trained.classes.index(name) for name in tested.classes]
    return _split(trained.paths, trained.labels), _split(tested.paths, [ids[label] for label in tested.labels])


def _list(top: Path) -> Listing:
    """Return the picture files of every class folder in `top`.

    Raises:
        UserError: if there are no classes, a class has no pictures, or the name of one is not text.
    """
    classes = _folders(top)
    if not classes:
        raise UserError(f"dataset.path must hold a folder of images for each class; {top} has none")
    paths: list[str] = []
    labels: list[int] = []
    skipped: Counter[str] = Counter()
    for label, name in enumerate(classes):
        if not name.isprintable():
            raise UserError(f"a class folder must have a readable name for its prompt; got {top / name}. Rename it")
        of_class = list(_files(top / name, skipped))
        if not of_class:
            raise UserError(f"dataset.path must hold images in every class; {top / name} has none")
        paths += of_class
        labels += [label] * len(of_class)
    return Listing(classes, paths, labels, skipped)


def _folders(top: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(top) if entry.is_dir() and _is_visible(entry.name))


def _files(top: Path, skipped: Counter[str]) -> Iterator[str]:
    """Yield the picture files below a folder, sorted, and count the other files by extension."""
    for root, names in sorted(_walk(top)):
        for name in sorted(filter(_is_visible, names)):
            extension = os.path.splitext(name)[1].lower()
            if extension in extensions():
                yield os.path.join(root, name)
            else:
                skipped[extension or "no extension"] += 1


def pictures_below(top: Path) -> list[str]:
    """Return the paths of the visible picture files below a folder, sorted."""
    return list(_files(top, Counter()))


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its files) of a folder and every visible folder below it, links included."""
    for root, folders, names in os.walk(top, followlinks=True):
        here = os.path.realpath(root) + os.sep
        targets = {name: os.path.realpath(os.path.join(root, name)) + os.sep for name in folders}
        # A link to a folder above would never end.
        folders[:] = [name for name in folders if _is_visible(name) and not here.startswith(targets[name])]
        yield root, names


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != IGNORED


def _split(paths: Sequence[str], labels: Sequence[int]) -> Split:
    return Split(ImageFiles(paths), np.asarray(labels, dtype=np.int64))


def _report_skipped(skipped: Counter[str]) -> None:
    if skipped:
        counts = ", ".join(f"{count} of {extension}" for extension, count in sorted(skipped.items()))
        processes.say(f"dataset.path: skipped files that are not images: {counts}")
