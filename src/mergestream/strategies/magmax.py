"""MagMax: for each parameter, the task's value with the largest magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.strategies._folds import zeros
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import Running, strategy
from mergestream.strategies.task_vectors import Rows


@strategy(
    scale=0.5,
    streams=True,
    propagates_nan=True,
    running=Running(),
    reference=Reference(
        "MagMax: Leveraging Model Merging for Seamless Continual Learning",
        "ECCV 2024",
        "https://arxiv.org/abs/2407.06322",
    ),
)
def magmax(taus: Rows) -> Tensor:
    """τ_p = τ_{t*,p} with t* = argmax_t |τ_{t,p}|; of equal magnitudes, the later task's value is kept.

    Marczak et al. 2024, Eq. 2. With independently fine-tuned encoders (method=ind) this is MaxAbs.
    """
    largest, smallest = (extreme.view(-1) for extreme in taus.extremes())
    balance = largest + smallest  # zero only if both have the same magnitude, otherwise the sign of the larger one
    merged = torch.maximum(largest, smallest.neg_(), out=smallest).copysign_(balance)
    # Only where +x and −x meet does the order of the tasks matter: in a few of a million float32 parameters, and in
    # many more in bfloat16.
    tied = zeros(balance)
    tied = tied[largest[tied] > 0]
    if len(tied):
        winners, *later = taus.at(tied)
        for tau in later:
            winners = torch.where(tau.abs() >= winners.abs(), tau, winners)
        merged[tied] = winners
    return merged.view(taus.shape[1:])
