"""How a dataset becomes a stream of tasks: one function per option of the ``stream`` group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergestream.data.source import Source, Split
from mergestream.data.splits import class_splits, named_order, parts_of_classes, validation_cut
from mergestream.runtime.errors import UserError


@dataclass(frozen=True)
class Task:
    """One task of a stream.

    Args:
        name: short, for displays.
        classes: class ids of the head while the task is trained, sorted.
        train, validation: positions in the source's train split, int64.
        test: positions in the source's test split, int64.
    """

    name: str
    classes: list[int]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def class_incremental(source: Source, *, tasks: int, seed: int, order: str, validation: float) -> list[Task]:
    """T tasks of disjoint classes (see `class_splits`), in the class order that `order` names.

    Args:
        source: the dataset.
        tasks: T.
        seed: draws the shuffled order and the validation cut.
        order: natural, shuffled, or one that the dataset publishes (paper).
        validation: fraction of every class's training samples that is kept for validation, in [0, 1).
    """
    published = named_order(source.num_classes, order, source.class_orders, seed, "class order")
    train, held_out = validation_cut(source.train.labels, validation, seed)

    def of_classes(split: Split, positions: np.ndarray, classes: list[int]) -> np.ndarray:
        return positions[np.isin(split.labels[positions], classes)]

    made = [
        Task(
            name=_span([source.class_names[c] for c in classes]),
            classes=classes,
            train=of_classes(source.train, train, classes),
            validation=of_classes(source.train, held_out, classes),
            test=of_classes(source.test, np.arange(len(source.test)), classes),
        )
        for classes in class_splits(source.num_classes, tasks, published)
    ]
    return _with_images(made)


def domain_incremental(source: Source, *, tasks: int, seed: int, order: str, validation: float) -> list[Task]:
    """One domain per task, all classes in each.

    Args:
        source: a dataset with domains.
        tasks: T, the number of domains.
        seed: draws the shuffled order and the validation cut.
        order: natural, shuffled, or one that the dataset publishes (paper).
        validation: fraction of every domain's training samples that is kept for validation, in [0, 1).

    Raises:
        UserError: if the dataset has no domains, or another number of them.
    """
    if not source.domain_names:
        raise UserError("stream=domain needs a dataset with domains; this one has none, or none in its mirror")
    domains = named_order(len(source.domain_names), order, source.domain_orders, seed, "domain order")
    return _of_domains(source, domains, [list(range(source.num_classes))] * len(domains), tasks, seed, validation)


def dataset_incremental(source: Source, *, tasks: int, seed: int, validation: float) -> list[Task]:
    """One whole dataset per task, with a head of its own, in the order of ``dataset.datasets``.

    Args:
        source: several datasets as one (see `suite`).
        tasks: T, the number of datasets.
        seed: draws the validation cut.
        validation: fraction of every dataset's training samples that is kept for validation, in [0, 1).

    Raises:
        UserError: if there is another number of datasets.
    """
    if not source.domain_classes:
        raise UserError("stream=dataset needs several datasets, such as dataset=eight_datasets; this is one")
    domains, heads = list(range(len(source.domain_names))), source.domain_classes
    return _of_domains(source, domains, heads, tasks, seed, validation)


def _of_domains(
    source: Source, domains: Sequence[int], heads: Sequence[Sequence[int]], tasks: int, seed: int, validation: float
) -> list[Task]:
    if tasks != len(domains):
        raise UserError(
            f"tasks must be {len(domains)}, one for each of {', '.join(source.domain_names)}; got tasks={tasks}"
        )
    of_train, of_test = source.train.domains, source.test.domains
    assert of_train is not None  # a source that names domains has them in both splits
    assert of_test is not None
    train, held_out = validation_cut(of_train, validation, seed)
    made = [
        Task(
            name=source.domain_names[d],
            classes=list(heads[d]),
            train=train[of_train[train] == d],
            validation=held_out[of_train[held_out] == d],
            test=np.flatnonzero(of_test == d),
        )
        for d in domains
    ]
    return _with_images(made)


def data_incremental(source: Source, *, tasks: int, seed: int, validation: float) -> list[Task]:
    """T tasks of all classes, each with its share of every class's samples; the test samples are shared out likewise.

    Args:
        source: the dataset.
        tasks: T.
        seed: draws who gets which sample, and the validation cut.
        validation: fraction of every class's training samples that is kept for validation, in [0, 1).

    Raises:
        UserError: if there are more tasks than samples of the largest class.
    """
    train, held_out = validation_cut(source.train.labels, validation, seed)
    everything = np.arange(len(source.test))
    shares = [
        parts_of_classes(split.labels, positions, tasks, seed, name)
        for name, split, positions in (
            ("train", source.train, train),
            ("validation", source.train, held_out),
            ("test", source.test, everything),
        )
    ]
    classes = list(range(source.num_classes))
    return _with_images([Task(f"part {t + 1}", classes, *p) for t, p in enumerate(zip(*shares, strict=True))])


def _with_images(tasks: list[Task]) -> list[Task]:
    for task in tasks:
        if not len(task.train) or not len(task.test):
            missing = "training" if not len(task.train) else "test"
            raise UserError(f"every task needs training and test images; {task.name} has no {missing} images")
    return tasks


def _span(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} … {names[-1]} ({len(names)})"
