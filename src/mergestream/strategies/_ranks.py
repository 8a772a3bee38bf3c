"""The k-th smallest magnitude of a task vector, exactly, without sorting the model or holding it in memory.

A sample brackets the value; one pass over the files counts what lies below the bracket and collects what lies inside.
Where more lies inside than may be collected, the pass makes a histogram of it instead, and the next one looks into the
right bin. Nothing depends on the sample but the number of passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from mergestream.merging.vectors import TaskVectors

STRIDE = 1 << 19  # a sample is taken from the first elements of every so many
COLLECTED = 1 << 20  # elements of a bracket that are kept, 4 MB
TASKS_AT_ONCE = 32  # so that memory does not grow with T
SEARCHES = 64  # nor with the number of ranks
BINS = 4096
LARGEST = 0x7F7FFFFF  # bits of the largest finite float32; as integers, magnitudes have the order of their values


@dataclass
class _Search:
    """Where one k-th smallest magnitude of one task vector is looked for: bits in [low, high]."""

    task: int
    k: int
    low: int = 0
    high: int = LARGEST
    below: int = 0
    inside: int = 0
    pieces: list[np.ndarray] = field(default_factory=list)
    bins: np.ndarray | None = None
    found: int | None = None
    lock: Lock = field(default_factory=Lock)

    @property
    def shift(self) -> int:
        """Bits of a bin's width."""
        return max(0, (self.high - self.low).bit_length() - BINS.bit_length() + 1)

    def count(self, bits: np.ndarray) -> None:
        """Take account of magnitudes `bits`, int32 [n]."""
        smaller = bits < self.low
        below = np.count_nonzero(smaller)
        inside = bits[np.flatnonzero((bits <= self.high) != smaller)] - np.int32(self.low)
        with self.lock:
            self.below += below
            self.inside += len(inside)
            if self.bins is not None:
                self._bin(inside)
                return
            self.pieces.append(inside)
            if self.inside > COLLECTED:
                self.bins = np.zeros(BINS, dtype=np.int64)
                for piece in self.pieces:
                    self._bin(piece)
                self.pieces = []

    def narrow(self) -> None:
        """After a pass over everything: the value, or a smaller bracket for the next pass."""
        rank = self.k - self.below  # 1-based, among what lies inside
        low, high = self.low, self.high
        if rank < 1:
            low, high = 0, self.low - 1
        elif rank > self.inside:
            low, high = self.high + 1, LARGEST
        elif self.bins is None:
            values = np.concatenate(self.pieces)
            self.found = self.low + int(np.partition(values, rank - 1)[rank - 1])
        else:
            bin = int(np.searchsorted(self.bins.cumsum(), rank))
            low = self.low + (bin << self.shift)
            high = min(self.high, low + (1 << self.shift) - 1)
            self.found = low if low == high else None
        self.low, self.high = low, high
        self.below = self.inside = 0
        self.pieces, self.bins = [], None

    def _bin(self, inside: np.ndarray) -> None:
        assert self.bins is not None
        self.bins += np.bincount(inside >> self.shift, minlength=BINS)


def smallest_magnitudes(vectors: TaskVectors, names: Sequence[str], ranks: Sequence[int]) -> list[list[float]]:
    """For every task, the k-th smallest |τ_t| over the weights `names`, for each k of `ranks`.

    Args:
        vectors: all task vectors.
        names: the weights that are ranked together.
        ranks: between 1 and the number of their parameters; 0 stands for below all, and gives 0.
    """
    found = np.zeros((len(vectors), len(ranks)), dtype=np.int32)
    wanted = [(i, k) for i, k in enumerate(ranks) if k > 0]
    at_once = min(TASKS_AT_ONCE, max(1, SEARCHES // max(1, len(wanted))))
    for first in range(0, len(vectors) if wanted else 0, at_once):
        tasks = range(first, min(first + at_once, len(vectors)))
        searches = {(t, i): _Search(t, k) for t in tasks for i, k in wanted}
        _bracket(vectors, names, tasks, list(searches.values()))
        while pending := [search for search in searches.values() if search.found is None]:

            def count(
                _block: object, _base: Tensor, taus: Tensor, tasks: range = tasks, pending: list[_Search] = pending
            ) -> None:
                for t, bits in _magnitudes(taus, tasks):
                    for search in pending:
                        if search.task == t:
                            search.count(bits)

            vectors.map(count, vectors.blocks(names, rows=True), rows=True, tasks=tasks)
            for search in pending:
                search.narrow()
                if search.low > LARGEST:
                    vectors.check()  # names the file with NaN or infinite values, which have the largest bits of all
        for (t, i), search in searches.items():
            found[t, i] = search.found or 0
    return found.view(np.float32).tolist()


def _bracket(vectors: TaskVectors, names: Sequence[str], tasks: range, searches: Sequence[_Search]) -> None:
    """First brackets, from a sample: the same share of every block, so that each layer counts as much as it should."""
    from mergestream.merging.vectors import Block

    total = sum(vectors.base.entries[name].numel for name in names)
    if total <= COLLECTED:
        return
    samples: dict[int, list[np.ndarray]] = {t: [] for t in tasks}
    lock = Lock()

    def take(_block: object, _base: Tensor, taus: Tensor) -> None:
        for t, bits in _magnitudes(taus, tasks):
            # Every 16th of a stretch: neighbours, the weights of one neuron, are alike.
            with lock:
                samples[t].append(bits[:: min(16, len(bits))].copy())

    pieces = []
    for name in names:
        numel = vectors.base.entries[name].numel
        for start in range(0, numel, STRIDE):
            size = max(1, min(STRIDE, numel - start) // 32)
            pieces.append(Block(name, start, size, (size,)))
    vectors.map(take, pieces, rows=True, tasks=tasks)
    for t in tasks:
        sample = np.sort(np.concatenate(samples[t]))
        for search in searches:
            if search.task == t:
                q = search.k / total
                margin = max(0.003, 4 * math.sqrt(q * (1 - q) / len(sample)))
                low, high = math.floor((q - margin) * len(sample)), math.ceil((q + margin) * len(sample))
                search.low = int(sample[low]) if low > 0 else 0
                search.high = int(sample[high]) if high < len(sample) else LARGEST


def _magnitudes(taus: Tensor, tasks: range) -> Iterator[tuple[int, np.ndarray]]:
    """(task, bits of |τ_t|, int32 [n]) of each of `tasks`; the rows are overwritten."""
    for t, tau in zip(tasks, taus, strict=True):
        bits = tau.view(-1).numpy().view(np.int32)
        yield t, np.bitwise_and(bits, 0x7FFFFFFF, out=bits)
