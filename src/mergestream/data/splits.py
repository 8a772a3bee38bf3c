"""Which classes and samples go to which task, and which samples are held out for validation."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise

import numpy as np

from mergestream.data.archive import readable_name
from mergestream.runtime.errors import UserError
from mergestream.runtime.seeding import permutation


def class_splits(
    num_classes: int,
    tasks: int,
    class_order: Sequence[int] | None = None,
    increments: Sequence[int] | None = None,
) -> list[list[int]]:
    """Return the sorted class ids of each task: positions ⌊C·t/T⌋ … ⌊C·(t+1)/T⌋ − 1 of the class order for task t.

    The boundaries are the published ones (Marczak et al. 2024), so tasks differ in size if T does not divide C. With
    increments, task t has increments[t] classes instead.

    Args:
        num_classes: C.
        tasks: T, between 1 and C.
        class_order: a permutation of 0 … C−1; by default the natural order.
        increments: ``stream.increments``, the number of classes of each task.

    Raises:
        UserError: if `tasks` is out of range, `class_order` is not a permutation, or the increments do not fit.
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
    if increments is not None:
        _check_increments(increments, num_classes, tasks)
        bounds = [0, *accumulate(increments)]
    else:
        # Integers, because the floating-point C/T·t can fall just below the exact ⌊C·t/T⌋.
        bounds = [num_classes * task // tasks for task in range(tasks + 1)]
    return [sorted(order[low:high]) for low, high in pairwise(bounds)]


def _check_increments(increments: Sequence[int], num_classes: int, tasks: int) -> None:
    if len(increments) != tasks:
        raise UserError(
            f"tasks must be {len(increments)}, the number of stream.increments, or be left out; got tasks={tasks}"
        )
    if min(increments) < 1 or sum(increments) != num_classes:
        raise UserError(
            f"stream.increments must be positive and add up to {num_classes}, the number of classes; "
            f"{list(increments)} adds up to {sum(increments)}"
        )


def resolve_order(
    count: int,
    order: str | Sequence[int | str],
    published: Mapping[str, Sequence[int]],
    seed: int,
    what: str,
    names: Sequence[str] = (),
) -> list[int]:
    """Return the order of classes or domains that ``stream.order`` names or lists.

    Args:
        count: number of classes or domains.
        order: natural, shuffled, or a key of `published`; or a list of all, by number or by name.
        published: orders that the dataset publishes.
        seed: draws the shuffled order.
        what: "class order" or "domain order"; part of the key of the draw.
        names: of the classes or domains, for a list.

    Raises:
        UserError: if there is no order of that name, or the list does not have each of them once.
    """
    if not isinstance(order, str):
        return _listed_order(names, order, "class" if what == "class order" else "domain")
    if order == "natural":
        return list(range(count))
    if order == "shuffled":
        return permutation(count, seed, what).tolist()
    if order in published:
        return [int(c) for c in published[order]]
    options = ", ".join(["natural", "shuffled", *published])
    raise UserError(f"stream.order must be one of {options} for this dataset; got stream.order={order}")


def _listed_order(names: Sequence[str], order: Sequence[int | str], kind: str) -> list[int]:
    """Return the ids of a list of numbers and names, which must have each of them once."""
    rule = f"stream.order must list each {kind} once, by its number from 0 to {len(names) - 1} or its name"
    ids = [_id(names, item, rule) for item in order]
    for position, index in enumerate(ids):
        if index in ids[:position]:
            raise UserError(f"{rule}; it has {names[index]!r} (number {index}) twice")
    if missing := sorted(set(range(len(names))) - set(ids)):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UserError(f"{rule}; it lacks {', '.join(repr(names[index]) for index in missing[:3])}{more}")
    return ids


def _id(names: Sequence[str], item: int | str, rule: str) -> int:
    if isinstance(item, int):
        if not 0 <= item < len(names):
            raise UserError(f"{rule}; it has the number {item}")
        return item
    found = [index for index, name in enumerate(names) if item == name]
    found = found or [index for index, name in enumerate(names) if readable_name(item) == name]
    if not found:
        near = difflib.get_close_matches(item, names, n=1)
        raise UserError(
            f"{rule}; it has {item!r}, which is none of them" + (f". Did you mean {near[0]!r}?" * bool(near))
        )
    if len(found) > 1:
        raise UserError(f"{rule}; {item!r} is the name of the numbers {', '.join(map(str, found))}. Write the numbers")
    return found[0]


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
