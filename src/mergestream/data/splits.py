"""Which class ids belong to which task, and which training samples are kept for validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from mergestream.runtime.errors import UserError
from mergestream.runtime.seeding import permutation


def class_splits(num_classes: int, tasks: int, class_order: Sequence[int] | None = None) -> list[list[int]]:
    """Class ids of each task: task t takes positions floor(C/T·t) … floor(C/T·(t+1))-1 of the class order, sorted.

    The boundaries are the published ones (Marczak et al. 2024), so tasks are unequal when T does not divide C.

    Args:
        num_classes: C.
        tasks: T, between 1 and C.
        class_order: a permutation of 0…C-1; None is the natural order.

    Raises:
        UserError: if `tasks` is out of range or `class_order` is no permutation.
    """
    if not 1 <= tasks <= num_classes:
        raise UserError(
            f"tasks must be between 1 and the number of classes, {num_classes}; got tasks={tasks}. "
            f"Write for example tasks={min(5, num_classes)}."
        )
    order = list(range(num_classes)) if class_order is None else [int(c) for c in class_order]
    if sorted(order) != list(range(num_classes)):
        raise UserError(
            f"a class order is a permutation of 0…{num_classes - 1}; got {len(order)} entries: {order[:8]}…"
        )
    # Integer arithmetic: floor(C·t/T) is exact where C/T·t in floating point may fall just below a whole number.
    bounds = [num_classes * task // tasks for task in range(tasks + 1)]
    return [sorted(order[low:high]) for low, high in pairwise(bounds)]


def named_order(count: int, order: str, published: Mapping[str, Sequence[int]], seed: int, what: str) -> list[int]:
    """The order of classes or domains that ``stream.order`` names: natural, shuffled (by `seed`), or a published one.

    Args:
        count: how many there are.
        order: natural, shuffled, or a key of `published`.
        published: orders that the dataset publishes.
        seed: draws the shuffled order.
        what: class order or domain order; keys the draw.

    Raises:
        UserError: if the dataset has no order of that name.
    """
    if order == "natural":
        return list(range(count))
    if order == "shuffled":
        return permutation(count, seed, what).tolist()
    if order in published:
        return [int(c) for c in published[order]]
    options = ", ".join(["natural", "shuffled", *published])
    raise UserError(f"stream.order must be one of {options} for this dataset; got stream.order={order}")


def validation_cut(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) indices: floor(fraction · n) samples of every label go to validation, drawn by `seed`."""
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        chosen = permutation(len(of_class), seed, "validation", int(label))[: int(fraction * len(of_class))]
        held_out[of_class[chosen]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def parts_of_classes(labels: np.ndarray, positions: np.ndarray, parts: int, seed: int, name: str) -> list[np.ndarray]:
    """`positions` cut into parts with a share of every class: of n samples, ⌊n·t/T⌋ … ⌊n·(t+1)/T⌋−1 go to part t.

    Args:
        labels: class id of every sample of the split, int64 [N].
        positions: those that are shared out, int64.
        parts: T.
        seed: draws the order of the samples of a class.
        name: of the split; keys the draw.
    """
    shares: list[list[np.ndarray]] = [[] for _ in range(parts)]
    for label in np.unique(labels):
        of_class = positions[labels[positions] == label]
        of_class = of_class[permutation(len(of_class), seed, "data", name, int(label))]
        for t, share in enumerate(shares):
            share.append(of_class[len(of_class) * t // parts : len(of_class) * (t + 1) // parts])
    return [np.sort(np.concatenate(share)) for share in shares]
