"""Averaging: the mean of the task vectors."""

from __future__ import annotations

from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies.strategy import strategy


@strategy(scale=1.0, rows=True, carries=True, running=True, finish=lambda tau, tasks: tau / tasks)
def average(taus: Tensor) -> Tensor:
    """τ = 1/T Σ_t τ_t, so that θ_merged is the mean of the fine-tuned weights. Wortsman et al. 2022."""
    return total(taus)  # divided by T when all are in
