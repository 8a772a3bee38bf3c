"""The k-th smallest magnitude of a task vector, exact, without sorting the model or holding it in memory.

A sample brackets the value; one pass over the files counts the magnitudes below the bracket and collects those inside.
If more lie inside than may be collected, the pass makes a histogram of them instead, and the next pass searches the
right bin. The sample affects only the number of passes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from torch import Tensor

from mergestream.strategies.task_vectors import CPU, Block, Reading, Rows, SurveyedVectors

STRIDE = 1 << 19  # the sample is drawn from the start of every stretch of so many elements
COLLECTED = 1 << 20  # elements of a bracket that are kept, 4 MB
TASKS_AT_ONCE = 32  # bounds the memory for many tasks
SEARCHES = 64  # bounds the memory for many ranks
BINS = 4096
LARGEST = 0x7F7FFFFF  # bits of the largest finite float32; read as integers, magnitudes keep their order
ON_CPU = Reading(CPU)  # numpy counts


@dataclass
class _Search:
    """The search for the k-th smallest magnitude of one task vector, whose bits lie in [low, high]."""

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
        """The logarithm of a bin's width."""
        return max(0, (self.high - self.low).bit_length() - BINS.bit_length() + 1)

    def count(self, bits: np.ndarray) -> None:
        """Count magnitudes, given by their `bits`, int32 [n]."""
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
        """Find the value after a pass over all magnitudes, or a smaller bracket for the next pass."""
        rank = self.k - self.below  # 1-based, inside the bracket
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


def smallest_magnitudes(vectors: SurveyedVectors, names: Sequence[str], ranks: Sequence[int]) -> list[list[float]]:
    """Return, for each task and each k of `ranks`, the k-th smallest |τ_t| over the weights `names`.

    Args:
        vectors: all task vectors.
        names: the weights that are ranked together.
        ranks: from 1 to the number of their parameters; 0 gives 0.
    """
    found = np.zeros((len(vectors), len(ranks)), dtype=np.int32)
    wanted = [(i, k) for i, k in enumerate(ranks) if k > 0]
    at_once = min(TASKS_AT_ONCE, max(1, SEARCHES // max(1, len(wanted))))
    for first in range(0, len(vectors) if wanted else 0, at_once):
        tasks = range(first, min(first + at_once, len(vectors)))
        searches = {(t, i): _Search(t, k) for t in tasks for i, k in wanted}
        _bracket(vectors, names, tasks, list(searches.values()))
        while pending := [search for search in searches.values() if search.found is None]:
            _count(vectors, names, tasks, pending)
            for search in pending:
                search.narrow()
                if search.low > LARGEST:
                    vectors.check()  # the bits of NaN and infinity are larger than those of any number
        for (t, i), search in searches.items():
            found[t, i] = search.found or 0
    return found.view(np.float32).tolist()


def _count(vectors: SurveyedVectors, names: Sequence[str], tasks: range, searches: Sequence[_Search]) -> None:
    """Show all magnitudes to the searches."""

    def count(_block: Block, _base: Tensor, taus: Rows) -> None:
        for t, bits in _magnitudes(taus, tasks):
            for search in searches:
                if search.task == t:
                    search.count(bits)

    vectors.map_rows(count, vectors.blocks(names, streamed=True), ON_CPU, tasks=tasks)


def _bracket(vectors: SurveyedVectors, names: Sequence[str], tasks: range, searches: Sequence[_Search]) -> None:
    """Set first brackets from a sample, which takes the same share of every stretch, so of every layer."""
    total = sum(vectors.numel(name) for name in names)
    if total <= COLLECTED:
        return
    samples: dict[int, list[np.ndarray]] = {t: [] for t in tasks}
    lock = Lock()

    def take(_block: Block, _base: Tensor, taus: Rows) -> None:
        for t, bits in _magnitudes(taus, tasks):
            # Every 16th element: neighbours, which are weights of the same neuron, are alike.
            with lock:
                samples[t].append(bits[:: min(16, len(bits))].copy())

    pieces = []
    for name in names:
        numel = vectors.numel(name)
        for start in range(0, numel, STRIDE):
            size = max(1, min(STRIDE, numel - start) // 32)
            pieces.append(Block(name, start, size, (size,)))
    vectors.map_rows(take, pieces, ON_CPU, tasks=tasks)
    for t in tasks:
        sample = np.sort(np.concatenate(samples[t]))
        for search in searches:
            if search.task == t:
                q = search.k / total
                margin = max(0.003, 4 * math.sqrt(q * (1 - q) / len(sample)))
                low, high = math.floor((q - margin) * len(sample)), math.ceil((q + margin) * len(sample))
                search.low = int(sample[low]) if low > 0 else 0
                search.high = int(sample[high]) if high < len(sample) else LARGEST


def _magnitudes(taus: Rows, tasks: range) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (task, bits of |τ_t|, int32 [n]) of each of `tasks`; overwrites the rows."""
    for t, tau in zip(tasks, taus, strict=True):
        bits = tau.view(-1).numpy().view(np.int32)
        yield t, np.bitwise_and(bits, 0x7FFFFFFF, out=bits)
