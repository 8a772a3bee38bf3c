"""RandMix: of each parameter, the value of a task drawn at random."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.keys import key
from mergestream.strategies.strategy import strategy


@strategy(scale=1.0)
def random_mix(taus: Tensor, *, name: str, start: int = 0, seed: int = 5) -> Tensor:
    """τ_p = τ_{u,p} with u uniform over the tasks, drawn for each parameter. Marczak et al. 2024, section 4.1.

    Args:
        taus: T tensors of one shape.
        name: the weight; with the element's index it keys the draw, so the order of the weights does not matter.
        start: index of the first element.
        seed: keys the draws.
    """
    counters = torch.arange(start, start + taus[0].numel(), dtype=torch.int64, device=taus.device) + key(seed, name)
    # The top 31 bits of a mixed 64-bit counter, scaled to 0…T-1: bias below T / 2³¹.
    chosen = ((_mix(counters) >> 33) & 0x7FFFFFFF) * len(taus) >> 31
    merged = taus[0]
    for task, tau in enumerate(taus[1:], start=1):
        merged = torch.where(chosen.view(tau.shape) == task, tau, merged)
    return merged


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 counters, which wrap around (Steele et al. 2014)."""
    x = x * -7046029254386353131  # 0x9E3779B97F4A7C15, the odd number nearest to 2⁶⁴ / φ
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; `>>` on int64 would copy the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
