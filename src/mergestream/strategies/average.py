"""Averaging: the mean of the task vectors."""

from __future__ import annotations

from torch import Tensor

from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_arithmetic import task_arithmetic


@strategy(scale=1.0)
def average(taus: Tensor) -> Tensor:
    """τ = 1/T Σ_t τ_t, so that θ_merged is the mean of the fine-tuned weights. Wortsman et al. 2022."""
    return task_arithmetic(taus) / len(taus)
