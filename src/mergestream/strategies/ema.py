"""Exponential moving average: each task vector moves the mean by a fixed share."""

from __future__ import annotations

from torch import Tensor

from mergestream.runtime.rules import require_fraction
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import Running, strategy
from mergestream.strategies.task_vectors import Rows


@strategy(
    scale=1.0,
    streams=True,
    propagates_nan=True,
    running=Running(),
    reference=Reference(
        "How to Merge Your Multimodal Models Over Time?", "CVPR 2025", "https://arxiv.org/abs/2412.06712"
    ),
)
def ema(taus: Rows, *, decay: float = 0.5) -> Tensor:
    """m_1 = τ_1, m_t = decay · m_{t−1} + (1 − decay) · τ_t, τ = m_T. Dziadzio et al. 2025, section 3.

    Args:
        taus: T task vectors, in the order of the tasks.
        decay: weight of the past, in [0, 1); 0 returns the last task vector.

    Raises:
        UserError: if decay is out of range.
    """
    require_fraction("strategy.decay", decay, zero=True)
    rows = iter(taus)
    mean = next(rows).clone()
    for tau in rows:
        mean.mul_(decay).add_(tau * (1 - decay))
    return mean
