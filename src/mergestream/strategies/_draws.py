"""Counter-based random numbers for single parameters: keyed by what they are for, not by when they are drawn."""

from __future__ import annotations

import numpy as np

from mergestream.runtime.seeding import key

PER_COUNT = 8  # draws of 32 bits in one count of Philox, which makes four 64-bit words


def draws(start: int, count: int, *parts: int | str) -> np.ndarray:
    """Draws number start … start + count − 1 of the sequence that belongs to `parts`, uniform uint32 [count].

    Philox4x64 (Salmon et al. 2011) maps (key, counter) to numbers, so any piece of the sequence is had directly.
    """
    first = start // PER_COUNT
    skipped = start - first * PER_COUNT
    words = -(-(skipped + count) // 2)
    generator = np.random.Philox(key=key(*parts), counter=first)
    return generator.random_raw(words).astype("<u8", copy=False).view("<u4")[skipped : skipped + count]
