"""Random draws by explicit key: the same (seed, task, epoch, sample) draws the same numbers everywhere."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def key(*parts: int | str) -> int:
    """A 63-bit integer from `parts`; changing any part changes it beyond recognition."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_draws(seed: int) -> None:
    """Seed every global generator: torch's on all devices, Python's, and NumPy's."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def permutation(length: int, *parts: int | str) -> np.ndarray:
    """The permutation of 0…length-1 that belongs to `parts`, int64 [length]."""
    return np.random.Generator(np.random.Philox(key=key(*parts))).permutation(length)
