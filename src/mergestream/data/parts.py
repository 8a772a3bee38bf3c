"""Labelled files of one task after the other, joined into a dataset that grows only at its end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergestream.data.archive import readable_name
from mergestream.data.images import ImageFiles
from mergestream.data.manifest import Record, split_by_name
from mergestream.data.source import Source, Split, prompts


@dataclass(frozen=True)
class Files:
    """Image files, and the class of each."""

    paths: list[str]
    classes: list[str]

    def divided(self, names: Sequence[str], test_fraction: float, split_seed: int) -> tuple[Files, Files, Record]:
        """Return the training and the test files that a manifest draws, and its record; see `split_by_name`.

        Args:
            names: that decide the draw, one for each file.
            test_fraction, split_seed: see `split_by_name`.
        """
        ids = {name: label for label, name in enumerate(dict.fromkeys(self.classes))}
        labels = [ids[name] for name in self.classes]
        at_train, at_test, record = split_by_name(names, labels, test_fraction=test_fraction, seed=split_seed)
        return self._at(at_train), self._at(at_test), record

    def _at(self, positions: np.ndarray) -> Files:
        chosen = positions.tolist()
        return Files([self.paths[i] for i in chosen], [self.classes[i] for i in chosen])


@dataclass(frozen=True)
class Part:
    """The files of a task, or of a whole dataset.

    Args:
        name: of the task; empty for a whole dataset.
        train, test: its files. Every class of the test files has training files in some part.
        record: of the manifest that divided them; empty if they came divided.
    """

    name: str
    train: Files
    test: Files
    record: Record

    @property
    def classes(self) -> list[str]:
        """The names of its classes, sorted."""
        return sorted({*self.train.classes, *self.test.classes})


def natural_key(name: str) -> tuple[list[int | str], str]:
    """Return a key that sorts names as people do, the numbers in them by value: 1, 2, 10."""
    pieces = re.split(r"(\d+)", name, flags=re.ASCII)  # text and digits in turn
    return [int(piece) if position % 2 else piece for position, piece in enumerate(pieces)], name


def joined(parts: Sequence[Part], templates: Sequence[str]) -> Source:
    """Return the dataset of several parts, which are its domains; or of one part without a name.

    Class ids count by first appearance, by part and then by name, and images are in the order of the parts. So another
    part at the end leaves the ids, names and positions of the others as they are.

    Args:
        parts: in order.
        templates: prompts, each with ``{}`` for the class name.

    Raises:
        UserError: if two classes share a prompt.
    """
    places: dict[str, str] = {}
    for part in parts:
        for name in part.classes:
            places.setdefault(name, f"{part.name}/{name}" if part.name else name)
    ids = {name: label for label, name in enumerate(places)}
    names = [readable_name(name) for name in ids]
    named = [part for part in parts if part.name]
    return Source(
        names,
        prompts(names, list(templates), folders=list(places.values())),
        train=_split([part.train for part in parts], ids, bool(named)),
        test=_split([part.test for part in parts], ids, bool(named)),
        domain_names=[part.name for part in named],
        domain_classes=[sorted(ids[name] for name in part.classes) for part in named],
        notes={part.name: part.record for part in named if part.record} if named else parts[0].record,
    )


def _split(files: Sequence[Files], ids: dict[str, int], has_domains: bool) -> Split:
    labels = np.array([ids[name] for part in files for name in part.classes], dtype=np.int64)
    domains = np.repeat(np.arange(len(files)), [len(part.paths) for part in files]) if has_domains else None
    return Split(ImageFiles([path for part in files for path in part.paths]), labels, domains)
