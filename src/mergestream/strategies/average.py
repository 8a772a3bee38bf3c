"""Averaging: the mean of the task vectors."""

from __future__ import annotations

from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import Running, strategy
from mergestream.strategies.task_vectors import Rows


@strategy(
    scale=1.0,
    streams=True,
    propagates_nan=True,
    running=Running(),
    finalize=lambda tau, tasks: tau / tasks,
    reference=Reference(
        "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference "
        "time",
        "ICML 2022",
        "https://arxiv.org/abs/2203.05482",
    ),
)
def average(taus: Rows) -> Tensor:
    """τ = 1/T Σ_t τ_t, so θ_merged is the mean of the fine-tuned weights. Wortsman et al. 2022."""
    return total(taus)  # `finalize` divides by T
