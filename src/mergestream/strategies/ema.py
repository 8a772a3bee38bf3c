"""Exponential moving average of the task vectors over time."""

from __future__ import annotations

from torch import Tensor

from mergestream.runtime.rules import require_fraction
from mergestream.strategies.strategy import strategy


@strategy(scale=1.0, rows=True, carries=True, running=True)
def ema(taus: Tensor, *, decay: float = 0.5) -> Tensor:
    """m_1 = τ_1, m_t = decay · m_{t−1} + (1 − decay) · τ_t, τ = m_T. Dziadzio et al. 2025, section 3.

    Args:
        taus: T task vectors, in the order of the tasks.
        decay: share of the past, in [0, 1); 0 is the last task alone.

    Raises:
        UserError: if decay is out of range.
    """
    require_fraction("strategy.decay", decay, zero=True)
    rows = iter(taus)
    mean = next(rows).clone()
    for tau in rows:
        mean.mul_(decay).add_(tau * (1 - decay))
    return mean
