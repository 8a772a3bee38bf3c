"""The images of a stream that grows: what its run was trained and evaluated on, task by task.

A run keeps its inventory in ``images.json`` and takes its data from there, so that a task that is finished stays what
it was, whatever else arrives.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from mergestream.data.images import ImageFiles, image_paths
from mergestream.data.source import Source, Split
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError

LEFT_OUT = "left_out_as_corrupt"  # the note of `check_images`


@dataclass(frozen=True)
class Files:
    """Image files, and what tells whether they are still the same.

    Args:
        paths: of the files.
        labels: class id of each.
        sizes, modified: bytes and modification time in nanoseconds of each.
        hashes: of the content of each.
    """

    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    modified: list[int] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)

    def missing(self) -> list[str]:
        """Return the files that are gone."""
        return [path for path in self.paths if not os.path.isfile(path)]

    def changed(self) -> list[str]:
        """Return the files whose content differs. Only those with another size or time are read."""
        found = []
        for path, *known, content in zip(self.paths, self.sizes, self.modified, self.hashes, strict=True):
            if os.path.isfile(path) and list(_status(path)) != known and _content(path) != content:
                found.append(path)
        return found


@dataclass(frozen=True)
class TaskFiles:
    """The images of one task.

    Args:
        name: of the task.
        classes: ids of its classes, sorted.
        train, test: its images.
    """

    name: str
    classes: list[int]
    train: Files
    test: Files

    def content(self, class_names: Sequence[str]) -> str:
        """Return the hash of its images and the names of their classes."""
        parts = [[part.hashes, [class_names[label] for label in part.labels]] for part in (self.train, self.test)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Inventory:
    """All images of a stream, in the order of the tasks of its source.

    Args:
        class_names, prompts: of each class; classes of later tasks come later.
        tasks: the images of each task.
        notes: of the source.
    """

    class_names: list[str]
    prompts: list[list[str]]
    tasks: list[TaskFiles]
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, source: Source, without: Collection[str] = ()) -> Inventory:
        """Return the inventory of a dataset whose tasks are its domains. Every file is read once.

        Args:
            source: the dataset.
            without: names of tasks to leave out.

        Raises:
            UserError: if images are not files.
        """
        made = [
            TaskFiles(name, sorted(source.domain_classes[n]), _files(source.train, n), _files(source.test, n))
            for n, name in enumerate(source.domain_names)
            if name not in without
        ]
        return cls(list(source.class_names), [list(p) for p in source.prompts], made, dict(source.notes))

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Inventory:
        """Return the inventory that `content` says; the inverse of `content`."""
        tasks = [
            TaskFiles(task["name"], task["classes"], Files(**task["train"]), Files(**task["test"]))
            for task in content["tasks"]
        ]
        return cls(content["class_names"], content["prompts"], tasks, content["notes"])

    def content(self) -> dict[str, Any]:
        """Return what JSON holds of it."""
        return asdict(self)

    def source(self) -> Source:
        """Return the dataset. No file is read."""
        return Source(
            class_names=self.class_names,
            prompts=self.prompts,
            train=self._split(lambda task: task.train),
            test=self._split(lambda task: task.test),
            domain_names=[task.name for task in self.tasks],
            domain_classes=[task.classes for task in self.tasks],
            domain_contents=[task.content(self.class_names) for task in self.tasks],
            class_groups=self._class_groups(),
            notes=self.notes,
        )

    def _split(self, files_of: Callable[[TaskFiles], Files]) -> Split:
        files = [files_of(task) for task in self.tasks]
        return Split(
            ImageFiles([path for part in files for path in part.paths]),
            np.array([label for part in files for label in part.labels], dtype=np.int64),
            np.repeat(np.arange(len(files)), [len(part.paths) for part in files]),
        )

    def _class_groups(self) -> list[int]:
        """Return how many classes appear first in each task, without the tasks that bring none."""
        latest = list(accumulate((max(task.classes, default=-1) + 1 for task in self.tasks), max, initial=0))
        return [count for count in np.diff(latest).tolist() if count]


def extended(known: Inventory, listed: Source, others: Source, trained: Collection[str], *, forget: bool) -> Inventory:
    """Return an inventory with the trained tasks of `known` as they are, and all other tasks as they are now.

    Args:
        known: of the run.
        listed: the dataset as it is now.
        others: the same without the images of the trained tasks, and without corrupt ones.
        trained: names of the tasks whose training has begun.
        forget: ``data.forget``; see `require_unchanged`.

    Raises:
        UserError: if images of a trained task differ, or a task arrived that sorts before a trained one.
    """
    kept = [task for task in known.tasks if task.name in trained]
    _require_listed(known, kept, listed, forget)
    require_unchanged(replace(known, tasks=kept), forget=forget)
    now = Inventory.of(others, without=trained)
    names = _order(known, [task.name for task in now.tasks], listed.domain_names, trained)
    ids = {name: number for number, name in enumerate(_class_order(known, now, kept, names))}
    texts = dict(zip((*now.class_names, *known.class_names), (*now.prompts, *known.prompts), strict=True))

    def renumbered(task: TaskFiles, class_names: Sequence[str]) -> TaskFiles:
        def files(part: Files) -> Files:
            return replace(part, labels=[ids[class_names[label]] for label in part.labels])

        classes = sorted(ids[class_names[label]] for label in task.classes)
        return TaskFiles(task.name, classes, files(task.train), files(task.test))

    by_name = {task.name: renumbered(task, now.class_names) for task in now.tasks}
    by_name |= {task.name: renumbered(task, known.class_names) for task in kept}
    corrupt = {*known.notes.get(LEFT_OUT, ()), *others.notes.get(LEFT_OUT, ())}  # type: ignore[misc]
    notes = {**others.notes, **{task.name: known.notes[task.name] for task in kept if task.name in known.notes}}
    notes |= {LEFT_OUT: sorted(corrupt)} if corrupt else {}
    return Inventory(list(ids), [texts[name] for name in ids], [by_name[name] for name in names], notes)


def require_unchanged(inventory: Inventory, *, forget: bool) -> None:
    """Check that the images of an inventory are there, with the content that they had.

    Args:
        inventory: of a run.
        forget: whether training images may be gone, and the test images of a task as a whole.

    Raises:
        UserError: if some changed or are gone.
    """
    for task in inventory.tasks:
        counts = {
            "training images changed": len(task.train.changed()),
            "test images changed": len(task.test.changed()),
            "training images are gone": 0 if forget else len(task.train.missing()),
            "test images are gone": _lost_test_images(task, forget),
        }
        if found := [f"{count} {what}" for what, count in counts.items() if count]:
            lost = any("training images are gone" in item for item in found)
            raise UserError(
                f"the images of a trained task must stay as they were; task {task.name}, with "
                f"{len(task.train.paths)} training and {len(task.test.paths)} test images: {', '.join(found)}. "
                f"Restore them{', or write data.forget=true if you deleted them on purpose' if lost else ''}"
            )


def forgotten(source: Source) -> dict[str, list[str]]:
    """Return the names of the domains that have lost all test images, and of those that have lost a training image.

    The keys are test and train.
    """
    lost: dict[str, list[list[bool]]] = {part: [[] for _ in source.domain_names] for part in ("test", "train")}
    for part, split in (("test", source.test), ("train", source.train)):
        assert split.domains is not None  # of a dataset whose tasks are its domains
        for position, path in image_paths(split.images):
            lost[part][int(split.domains[position])].append(not os.path.isfile(path))
    names = source.domain_names
    return {
        "test": [name for name, missing in zip(names, lost["test"], strict=True) if all(missing)],
        "train": [name for name, missing in zip(names, lost["train"], strict=True) if any(missing)],
    }


def _lost_test_images(task: TaskFiles, forget: bool) -> int:
    missing = len(task.test.missing())
    return 0 if forget and missing == len(task.test.paths) else missing


def _require_listed(known: Inventory, kept: Sequence[TaskFiles], listed: Source, forget: bool) -> None:
    """Check that the trained tasks have the images and labels that they were trained with, and no others."""
    here: dict[str, dict[str, str]] = {name: {} for name in listed.domain_names}
    for split in (listed.train, listed.test):
        assert split.domains is not None  # of a dataset whose tasks are its domains
        for position, path in image_paths(split.images):
            task = listed.domain_names[split.domains[position]]
            here[task][path] = listed.class_names[split.labels[position]]
    for task in kept:
        now, corrupt = here.get(task.name, {}), set(known.notes.get(LEFT_OUT, ()))
        labels = {
            path: known.class_names[label]
            for part in (task.train, task.test)
            for path, label in zip(part.paths, part.labels, strict=True)
        }
        if more := sorted(now.keys() - labels.keys() - corrupt):
            raise UserError(
                f"the images of a trained task must stay as they were; task {task.name} has {len(more)} new ones, such "
                f"as {more[0]}. Move them to a task of their own, whose name sorts last"
            )
        wrong = [path for path, label in labels.items() if now.get(path, label) != label]
        gone = [path for path in labels if path not in now and os.path.isfile(path) and not forget]
        for paths, what in ((wrong, "another label"), (gone, "no label any more")):
            if paths:
                raise UserError(
                    f"the labels of a trained task must stay as they were; in task {task.name}, {len(paths)} images "
                    f"have {what}, such as {paths[0]}. Restore them"
                )


def _order(known: Inventory, now: Sequence[str], listed: Sequence[str], trained: Collection[str]) -> list[str]:
    """Return the names of all tasks: the known ones in their order, and each new one after its predecessor.

    Args:
        known: the inventory so far.
        now: names of the tasks that are not trained.
        listed: the tasks that are there now, sorted; a trained one may be gone.
        trained: names of the trained tasks.
    """
    names = [task.name for task in known.tasks if task.name in trained or task.name in now]
    before: str | None = None
    for name in listed:
        if name not in names:
            names.insert(0 if before is None else names.index(before) + 1, name)
            if later := [other for other in names[names.index(name) :] if other in trained]:
                raise UserError(
                    f"a task that arrives must sort after the trained ones; {name} comes before {later[0]}, whose "
                    "training has begun. Rename it, or write tag=NAME to start a second run"
                )
        before = name
    return names


def _class_order(known: Inventory, now: Inventory, kept: Sequence[TaskFiles], names: Sequence[str]) -> list[str]:
    """Return the names of all classes, in the order in which the tasks bring them."""
    classes = {task.name: [now.class_names[label] for label in task.classes] for task in now.tasks}
    classes |= {task.name: [known.class_names[label] for label in task.classes] for task in kept}
    return list(dict.fromkeys(name for task in names for name in classes[task]))


def _files(split: Split, domain: int) -> Files:
    assert split.domains is not None  # of a dataset whose tasks are its domains
    positions = np.flatnonzero(split.domains == domain).tolist()
    by_position = dict(image_paths(split.images))
    if lacking := [p for p in positions if p not in by_position]:
        raise UserError(f"a stream that grows needs images in files; {len(lacking)} of its images are not")
    paths = [by_position[position] for position in positions]
    with ThreadPoolExecutor(processes.cores()) as pool:  # hashing releases the interpreter lock
        hashes = list(pool.map(_content, paths))
    statuses = [_status(path) for path in paths]
    labels = split.labels[positions].tolist()
    return Files(paths, labels, [size for size, _ in statuses], [time for _, time in statuses], hashes)


def _status(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _content(path: str) -> str:
    return hashlib.blake2b(Path(path).read_bytes(), digest_size=16).hexdigest()
