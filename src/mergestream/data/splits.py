"""Which classes and samples go to which task, and which samples are held out for validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

from mergestream.runtime.errors import UserError
from mergestream.runtime.seeding import permutation


def class_splits(num_classes: int, tasks: int, class_order: Sequence[int] | None = None) -> list[list[int]]:
    """Return the sorted class ids of each task: positions ⌊C·t/T⌋ … ⌊C·(t+1)/T⌋ − 1 of the class order for task t.

    The boundaries are the published ones (Marczak et al. 2024), so tasks differ in size if T does not divide C.

    Args:
        num_classes: C.
        tasks: T, between 1 and C.
        class_order: a permutation of 0 … C−1; by default the natural order.

    Raises:
        UserError: if `tasks` is out of range or `class_order` is not a permutation.
    """
    if not 1 <= tasks <= num_classes:
        raise UserError(
            f"tasks must be between 1 and the number of classes, {num_classes}; got tasks={tasks}. "
            f"Write for example tasks={min(5, num_classes)}."
        )
    order = list(range(num_classes)) if class_order is None else [int(c) for c in class_order]
    if sorted(order) != list(range(num_classes)):
        raise UserError(
            f"a class order must be a permutation of 0 … {num_classes - 1}; got {len(order)} entries: {order[:8]}…"
        )
    # Integers, because the floating-point C/T·t can fall just below the exact ⌊C·t/T⌋.
    bounds = [num_classes * task // tasks for task in range(tasks + 1)]
    return [sorted(order[low:high]) for low, high in pairwise(bounds)]


def resolve_order(count: int, order: str, published: Mapping[str, Sequence[int]], seed: int, what: str) -> list[int]:
    """Return the order of classes or domains that ``stream.order`` names.

    Args:
        count: number of classes or domains.
        order: natural, shuffled, or a key of `published`.
        published: orders that the dataset publishes.
        seed: draws the shuffled order.
        what: "class order" or "domain order"; part of the key of the draw.

    Raises:
        UserError: if there is no order of that name.
    """
    if order == "natural":
        return list(range(count))
    if order == "shuffled":
        return permutation(count, seed, what).tolist()
    if order in published:
        return [int(c) for c in published[order]]
    options = ", ".join(["natural", "shuffled", *published])
    raise UserError(f"stream.order must be one of {options} for this dataset; got stream.order={order}")


def validation_split(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hold out ⌊fraction · n⌋ of the n samples of each label for validation, drawn by `seed`.

    Args:
        labels: class or domain id of every training sample, int64 [N].
        fraction: in [0, 1).
        seed: seed of the run.

    Returns:
        Positions of the training samples and positions of the validation samples.
    """
    held_out = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        drawn = permutation(len(of_class), seed, "validation", int(label))[: int(fraction * len(of_class))]
        held_out[of_class[drawn]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def stratified_parts(labels: np.ndarray, positions: np.ndarray, parts: int, seed: int, name: str) -> list[np.ndarray]:
    """Divide samples into T parts with an equal share of every class.

    Of the n shuffled samples of a class, samples ⌊n·t/T⌋ … ⌊n·(t+1)/T⌋ − 1 go to part t.

    Args:
        labels: class id of every sample of the split, int64 [N].
        positions: samples to divide, int64.
        parts: T.
        seed: draws the order of the samples of a class.
        name: name of the split; part of the key of the draw.

    Returns:
        Sorted positions of each part.
    """
    shares: list[list[np.ndarray]] = [[] for _ in range(parts)]
    for label in np.unique(labels):
        of_class = positions[labels[positions] == label]
        of_class = of_class[permutation(len(of_class), seed, "data", name, int(label))]
        for t, share in enumerate(shares):
            share.append(of_class[len(of_class) * t // parts : len(of_class) * (t + 1) // parts])
    return [np.sort(np.concatenate(share)) for share in shares]
