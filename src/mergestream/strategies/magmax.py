"""MagMax: of each parameter, the task's value that is largest in magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.strategies._folds import extremes, zeros
from mergestream.strategies.strategy import strategy


@strategy(scale=0.5, rows=True, carries=True, running=True)
def magmax(taus: Tensor) -> Tensor:
    """τ_p = τ_{t*,p} with t* = argmax_t |τ_{t,p}|; equal magnitudes go to the later task.

    Marczak et al. 2024, Eq. 2. On independently fine-tuned encoders (method=ind) this is MaxAbs.
    """
    largest, smallest = extremes(taus) if isinstance(taus, Tensor) else taus.extremes()
    largest, smallest = largest.view(-1), smallest.view(-1)
    balance = largest + smallest  # zero only if both are equal in magnitude, else of the larger one's sign
    merged = torch.maximum(largest, smallest.neg_(), out=smallest).copysign_(balance)
    # +x and −x meet in a few of a million parameters, in bfloat16 in far more; only there the order of tasks matters.
    tied = zeros(balance)
    tied = tied[largest[tied] > 0]
    if len(tied):
        winners, *later = taus.flatten(1)[:, tied] if isinstance(taus, Tensor) else taus[:, tied]
        for tau in later:
            winners = torch.where(tau.abs() >= winners.abs(), tau, winners)
        merged[tied] = winners
    return merged.view(taus.shape[1:])
