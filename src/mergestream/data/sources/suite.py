"""Several datasets as one, each a domain with its own classes, for dataset-incremental streams."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mergestream.data.source import Source, Split, shared
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError


def suite(
    root: str,
    datasets: Mapping[str, Callable[..., Source]],
    download: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Source:
    """Return the union of several datasets. Every class keeps the prompts of its own dataset.

    Args:
        root: folder that holds the datasets.
        datasets: the function that loads each dataset, by name.
        download: passed on to the functions that can download.
        options: further arguments of a dataset's function, by name.

    Raises:
        UserError: if a dataset is missing, or an option does not fit its function.
    """
    options = options or {}
    if unknown := sorted(options.keys() - set(datasets)):
        raise UserError(f"dataset.options must name one of {', '.join(datasets)}; got dataset.options.{unknown[0]}")
    sources = []
    for name, function in datasets.items():
        signature = inspect.signature(function)
        shared = {"root": root, "download": download}
        own = {key: value for key, value in shared.items() if key in signature.parameters} | dict(options.get(name, {}))
        try:
            signature.bind(**own)
        except TypeError as error:
            raise UserError(f"invalid options for {name}: {error}. Type +dataset.options.{name}.KEY=VALUE") from error
        try:
            sources.append(function(**own))
        except UserError as error:
            raise UserError(str(error).replace("dataset.mirror=", f"+dataset.options.{name}.mirror=")) from error
    starts = np.cumsum([0, *(source.num_classes for source in sources)])
    prompts = [said for source in sources for said in source.prompts]
    _report_shared(list(datasets), np.searchsorted(starts, np.arange(len(prompts)), side="right") - 1, prompts)

    def union(part: str) -> Split:
        splits: list[Split] = [getattr(source, part) for source in sources]
        joined = Split.concat(splits)
        offsets = np.repeat(starts[:-1], [len(s) for s in splits])
        return Split(
            joined.images, joined.labels + offsets, np.repeat(np.arange(len(splits)), [len(s) for s in splits])
        )

    return Source(
        class_names=[name for source in sources for name in source.class_names],
        prompts=prompts,
        train=union("train"),
        test=union("test"),
        domain_names=list(datasets),
        domain_classes=[list(range(low, high)) for low, high in pairwise(starts.tolist())],
        notes={name: dict(source.notes) for name, source in zip(datasets, sources, strict=True) if source.notes},
    )


def _report_shared(names: Sequence[str], owners: np.ndarray, prompts: Sequence[Sequence[str]]) -> None:
    """Say which datasets have classes with the same prompts, such as the digits of MNIST and SVHN.

    Args:
        names: of the datasets.
        owners: the dataset of each class.
        prompts: of each class.
    """
    counts = Counter((names[owners[one]], names[owners[other]]) for one, other in shared(prompts))
    for (one, other), count in counts.items():
        if one != other:  # within a dataset, its reader has said it
            processes.say(
                f"{one} and {other} have the same prompts for {count} classes, so among the classes of all data sets "
                f"only those of {one} can be predicted"
            )
