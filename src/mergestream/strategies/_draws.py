"""Random numbers for single parameters, determined by a key and the parameter's position."""

from __future__ import annotations

import numpy as np

from mergestream.runtime.seeding import key

PER_COUNT = 8  # 32-bit draws per count of Philox, which returns four 64-bit words


def draws(start: int, count: int, *parts: int | str) -> np.ndarray:
    """Return draws number start … start + count − 1 of the sequence that `parts` determine, uniform uint32 [count].

    Philox4x64 (Salmon et al. 2011) maps (key, counter) to numbers, so any piece of the sequence is computed directly.
    """
    first = start // PER_COUNT
    skipped = start - first * PER_COUNT
    words = -(-(skipped + count) // 2)
    generator = np.random.Philox(key=key(*parts), counter=first)
    return generator.random_raw(words).astype("<u8", copy=False).view("<u4")[skipped : skipped + count]
