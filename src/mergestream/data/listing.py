"""Finds the picture files below folders of classes, and the folders of the splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mergestream.data.decode import extensions
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
        paths: of the files, class by class, sorted.
        classes: of each file, the name of the folder.
        skipped: how many files were left out because of their extension, by extension.
    """

    paths: list[str]
    classes: list[str]
    skipped: Counter[str]


def kind_of_split(name: str) -> str | None:
    """Return train, test or validation if `name` is a name of it, in any case."""
    kinds = (("train", TRAIN), ("test", TEST), ("validation", VALIDATION))
    return next((kind for kind, names in kinds if name.lower() in names), None)


def find_splits(top: Path) -> tuple[Path, Path] | None:
    """Return the folders of the training and the test split; None if the folders are classes.

    Raises:
        UserError: if some folders are named like splits, but not all of them, or not both splits are there.
    """
    folders = find_folders(top)
    found: dict[str | None, list[str]] = {kind: [] for kind in ("train", "test", "validation", None)}
    for name in folders:
        found[kind_of_split(name)].append(name)
    unnamed = found.pop(None)
    named = [name for names in found.values() for name in names]
    if not named:
        return None
    others = [name for name in unnamed if any(find_pictures(top / name))]
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


def list_classes(top: Path) -> Listing:
    """Return the picture files of every class folder in `top`.

    Raises:
        UserError: if there are no classes, a class has no pictures, or the name of one is not text.
    """
    folders = find_folders(top)
    if not folders:
        raise UserError(f"dataset.path must hold a folder of images for each class; {top} has none")
    paths: list[str] = []
    classes: list[str] = []
    skipped: Counter[str] = Counter()
    for name in folders:
        if not name.isprintable():
            raise UserError(f"a class folder must have a readable name for its prompt; got {top / name}. Rename it")
        of_class = list(find_pictures(top / name, skipped))
        if not of_class:
            raise UserError(f"dataset.path must hold images in every class; {top / name} has none")
        paths += of_class
        classes += [name] * len(of_class)
    return Listing(paths, classes, skipped)


def find_folders(top: Path) -> list[str]:
    """Return the names of the visible folders in `top`, sorted."""
    return sorted(entry.name for entry in os.scandir(top) if entry.is_dir() and _is_visible(entry.name))


def first_picture(top: Path) -> str | None:
    """Return the name of a picture that lies in `top` itself."""
    names = (entry.name for entry in os.scandir(top) if entry.is_file() and _is_visible(entry.name))
    return min((name for name in names if _extension(name) in extensions()), default=None)


def find_pictures(top: Path, skipped: Counter[str] | None = None) -> Iterator[str]:
    """Yield the visible picture files below a folder, sorted.

    Args:
        top: the folder.
        skipped: counts the other files by extension.
    """
    for root, names in sorted(_walk(top)):
        for name in sorted(filter(_is_visible, names)):
            extension = _extension(name)
            if extension in extensions():
                yield os.path.join(root, name)
            elif skipped is not None:
                skipped[extension or "no extension"] += 1


def _walk(top: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield (folder, names of its files) of a folder and every visible folder below it, links included."""
    for root, folders, names in os.walk(top, followlinks=True):
        here = os.path.realpath(root) + os.sep
        targets = {name: os.path.realpath(os.path.join(root, name)) + os.sep for name in folders}
        # A link to a folder above would never end.
        folders[:] = [name for name in folders if _is_visible(name) and not here.startswith(targets[name])]
        yield root, names


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name != IGNORED
