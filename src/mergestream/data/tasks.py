"""The ways to divide a dataset into tasks, one function per option of the ``stream`` group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mergestream.data.source import Source, Split
from mergestream.data.splits import class_splits, resolve_order, stratified_parts, validation_split
from mergestream.runtime.errors import UserError


@dataclass(frozen=True)
class Task:
    """One task of a stream.

    Args:
        name: short name for displays.
        classes: sorted class ids of the training head.
        train, validation: positions in the train split of the source, int64.
        test: positions in the test split of the source, int64.
    """

    name: str
    classes: list[int]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def class_incremental(
    source: Source,
    *,
    tasks: int,
    seed: int,
    order: str | Sequence[int | str],
    validation: float,
    increments: Sequence[int] | None = None,
) -> list[Task]:
    """Divide the classes of a dataset into T disjoint tasks (see `class_splits`).

    Args:
        source: the dataset.
        tasks: T.
        seed: draws the shuffled class order and the validation samples.
        order: class order: natural, shuffled, or one that the dataset publishes (paper); or a list (`resolve_order`).
        validation: fraction of every class's training samples to hold out for validation, in [0, 1).
        increments: the number of classes of each task; None is the published boundaries.
    """
    class_order = resolve_order(source.num_classes, order, source.class_orders, seed, "class order", source.class_names)
    train, held_out = validation_split(source.train.labels, validation, seed)

    def of_classes(split: Split, positions: np.ndarray, classes: list[int]) -> np.ndarray:
        return positions[np.isin(split.labels[positions], classes)]

    return _checked(
        [
            Task(
                name=_task_name([source.class_names[c] for c in classes]),
                classes=classes,
                train=of_classes(source.train, train, classes),
                validation=of_classes(source.train, held_out, classes),
                test=of_classes(source.test, np.arange(len(source.test)), classes),
            )
            for classes in class_splits(source.num_classes, tasks, class_order, increments)
        ]
    )


def domain_incremental(
    source: Source, *, tasks: int | None, seed: int, order: str | Sequence[int | str], validation: float
) -> list[Task]:
    """Make a task of each domain of a dataset, with all classes in every task.

    Args:
        source: a dataset with domains.
        tasks: T, the number of domains; None is as many as there are.
        seed: draws the shuffled domain order and the validation samples.
        order: domain order: natural, shuffled, or one that the dataset publishes (paper); or a list (`resolve_order`).
        validation: fraction of every domain's training samples to hold out for validation, in [0, 1).

    Raises:
        UserError: if the dataset has no domains, or `tasks` is not their number.
    """
    if not source.domain_names:
        raise UserError("stream=domain needs a dataset with domains, such as dataset=glyphs; this one has none")
    domains = resolve_order(
        len(source.domain_names), order, source.domain_orders, seed, "domain order", source.domain_names
    )
    return _domain_tasks(source, domains, [list(range(source.num_classes))] * len(domains), tasks, seed, validation)


def dataset_incremental(source: Source, *, tasks: int, seed: int, validation: float) -> list[Task]:
    """Make a task of each dataset of a suite, with its own classes, in the order of ``dataset.datasets``.

    Args:
        source: several datasets in one (see `suite`).
        tasks: T, the number of datasets.
        seed: draws the validation samples.
        validation: fraction of every dataset's training samples to hold out for validation, in [0, 1).

    Raises:
        UserError: if the source is a single dataset, or `tasks` is not the number of datasets.
    """
    if not source.domain_classes:
        raise UserError(
            "stream=dataset needs several datasets, such as dataset=eight_datasets; this is a single dataset"
        )
    domains, heads = list(range(len(source.domain_names))), source.domain_classes
    return _domain_tasks(source, domains, heads, tasks, seed, validation)


def folder_incremental(source: Source, *, tasks: int | None, seed: int, validation: float) -> list[Task]:
    """Make a task of each task that the data name, with the classes that it has. A class may come in several tasks.

    Args:
        source: a dataset with domains that have classes of their own, such as `folder` with ``layout=tasks``.
        tasks: T, the number of tasks; None is as many as there are.
        seed: draws the validation samples.
        validation: fraction of every task's training samples to hold out for validation, in [0, 1).

    Raises:
        UserError: if the data have no tasks, or `tasks` is not their number.
    """
    if not source.domain_classes:
        raise UserError(
            "stream=folders needs data with tasks: dataset.layout=tasks for a folder of them, or a column task in a "
            "table. Otherwise write stream=class"
        )
    domains, heads = list(range(len(source.domain_names))), source.domain_classes
    return _domain_tasks(source, domains, heads, tasks, seed, validation)


def _domain_tasks(
    source: Source,
    domains: Sequence[int],
    heads: Sequence[Sequence[int]],
    tasks: int | None,
    seed: int,
    validation: float,
) -> list[Task]:
    """One task per domain: domains[t] with the class ids heads[domains[t]]."""
    if tasks not in (None, len(domains)):
        raise UserError(
            f"tasks must be {len(domains)}, one for each of {', '.join(source.domain_names)}; got tasks={tasks}"
        )
    of_train, of_test = source.train.domains, source.test.domains
    assert of_train is not None  # a source with domain names has domains in both splits
    assert of_test is not None
    train, held_out = validation_split(of_train, validation, seed)
    return _checked(
        [
            Task(
                name=source.domain_names[d],
                classes=list(heads[d]),
                train=train[of_train[train] == d],
                validation=held_out[of_train[held_out] == d],
                test=np.flatnonzero(of_test == d),
            )
            for d in domains
        ]
    )


def data_incremental(source: Source, *, tasks: int, seed: int, validation: float) -> list[Task]:
    """Divide the samples of every class, training and test, evenly among T tasks.

    Args:
        source: the dataset.
        tasks: T.
        seed: draws the samples of each task and the validation samples.
        validation: fraction of every class's training samples to hold out for validation, in [0, 1).

    Raises:
        UserError: if there are more tasks than samples of the largest class.
    """
    train, held_out = validation_split(source.train.labels, validation, seed)
    parts = [
        stratified_parts(split.labels, positions, tasks, seed, name)
        for name, split, positions in (
            ("train", source.train, train),
            ("validation", source.train, held_out),
            ("test", source.test, np.arange(len(source.test))),
        )
    ]
    classes = list(range(source.num_classes))
    return _checked([Task(f"part {t + 1}", classes, *samples) for t, samples in enumerate(zip(*parts, strict=True))])


def _checked(tasks: list[Task]) -> list[Task]:
    """The tasks, if each of them has images."""
    for task in tasks:
        if not len(task.train) or not len(task.test):
            missing = "training" if not len(task.train) else "test"
            raise UserError(f"every task needs training and test images; {task.name} has no {missing} images")
    return tasks


def _task_name(class_names: Sequence[str]) -> str:
    if len(class_names) <= 3:
        return ", ".join(class_names)
    return f"{class_names[0]} … {class_names[-1]} ({len(class_names)})"
