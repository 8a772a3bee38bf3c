"""Averaging: the mean of the task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mergestream.strategies.strategy import strategy


@strategy(scale=1.0)
def average(taus: Sequence[Tensor]) -> Tensor:
    """τ = 1/T Σ_t τ_t, so that θ_merged is the mean of the fine-tuned weights. Wortsman et al. 2022."""
    return sum(taus[1:], start=taus[0]) / len(taus)
