"""The metadata of a merged file: what it was made of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from mergestream import __version__
from mergestream.strategies.strategy import BoundStrategy


def provenance(
    bound: BoundStrategy,
    inputs: Sequence[str | dict[str, str]],
    *,
    scale: float | None = None,
    skipped: Sequence[str] | None = None,
    tasks: int | None = None,
    lengths: Sequence[float] = (),
    others: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Return the metadata of a merged file.

    Args:
        bound: the strategy and its options.
        inputs: the content hash of each input, θ₀ first; with its file name where the file is the user's.
        scale: λ; None for a merged task vector.
        skipped: tensors that ``on_mismatch=skip`` left out.
        tasks: how many task vectors a running merge holds.
        lengths: of these task vectors, for a strategy with `Strategy.factor`.
        others: changed settings of the merge that are not options of the strategy.
    """
    found = {
        "format": None if scale is None else "pt",  # transformers requires it of weights
        "strategy": bound.strategy.name,
        "scale": None if scale is None else repr(float(scale)),
        "options": dumped_options(bound),
        "skipped": None if skipped is None else json.dumps(sorted(skipped)),
        "tasks": None if tasks is None else str(tasks),
        "lengths": json.dumps(list(lengths)) if lengths else None,
        "version": __version__,
        "inputs": json.dumps(list(inputs)),
        **bound.adjustments.metadata,
        **others,
    }
    return {key: value for key, value in found.items() if value is not None}


def dumped_options(bound: BoundStrategy) -> str:
    """Return the options as the metadata hold them."""
    return json.dumps(bound.options, sort_keys=True)
