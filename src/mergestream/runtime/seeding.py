"""Random draws from explicit keys: the same (seed, task, epoch, sample) gives the same numbers everywhere."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def key(*parts: int | str) -> int:
    """Return a 63-bit integer that identifies `parts`; different parts give unrelated integers."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(seed: int) -> None:
    """Seed the global generators of torch (on all devices that are in use), Python and NumPy."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # torch.manual_seed would note the call for later, which takes 2 ms
        torch.cuda.manual_seed_all(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)


def permutation(length: int, *parts: int | str) -> np.ndarray:
    """Return the permutation of 0…length-1 that `parts` determine, int64 [length]."""
    return np.random.Generator(np.random.Philox(key=key(*parts))).permutation(length)
