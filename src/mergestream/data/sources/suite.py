"""Several datasets as one, each a domain with classes of its own: what dataset-incremental streams are cut from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from mergestream.compose import targets
from mergestream.data.source import Source, Split
from mergestream.runtime.errors import UserError

_RULE = "dataset.datasets must be names of the dataset group, or package.module.function; got {}"


def suite(
    root: str,
    datasets: Sequence[str],
    download: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Source:
    """The union of the label sets; every class keeps the prompts of its own dataset.

    Args:
        root: where each of them is looked for.
        datasets: names of files in this folder, or dotted paths of functions elsewhere (``package.module.function``).
        download: passed on to those that can.
        options: other arguments of a dataset's function, by its name.

    Raises:
        UserError: if one is unknown or missing.
    """
    if len(set(datasets)) < max(len(datasets), 1):
        raise UserError(f"dataset.datasets must be different datasets, at least one; got {list(datasets)}")
    options = options or {}
    if unknown := sorted(options.keys() - set(datasets)):
        raise UserError(f"dataset.options must be of {', '.join(datasets)}; got dataset.options.{unknown[0]}")
    sources = []
    for name in datasets:
        function = _function(name)
        signature = inspect.signature(function)
        shared = {"root": root, "download": download}
        own = {key: value for key, value in shared.items() if key in signature.parameters} | dict(options.get(name, {}))
        try:
            signature.bind(**own)
        except TypeError as error:
            raise UserError(f"dataset.options.{name} must be what {name} takes and needs: {error}") from error
        try:
            sources.append(function(**own))
        except UserError as error:
            raise UserError(str(error).replace("dataset.mirror=", f"+dataset.options.{name}.mirror=")) from error
    starts = np.cumsum([0, *(source.num_classes for source in sources)])

    def union(part: str) -> Split:
        splits: list[Split] = [getattr(source, part) for source in sources]
        joined = Split.concat(splits)
        offsets = np.repeat(starts[:-1], [len(s) for s in splits])
        return Split(
            joined.images, joined.labels + offsets, np.repeat(np.arange(len(splits)), [len(s) for s in splits])
        )

    return Source(
        class_names=[name for source in sources for name in source.class_names],
        prompts=[said for source in sources for said in source.prompts],
        train=union("train"),
        test=union("test"),
        domain_names=list(datasets),
        domain_classes=[list(range(low, high)) for low, high in pairwise(starts.tolist())],
        notes={name: dict(source.notes) for name, source in zip(datasets, sources, strict=True) if source.notes},
    )


def _function(name: str) -> Callable[..., Source]:
    dotted = "." in str(name)
    try:
        return targets.locate(name if dotted else f"mergestream.data.sources.{name}.{name}")
    except UserError as error:
        raise UserError(f"{_RULE.format(name)}" + (f": {error}" if dotted else "")) from error
