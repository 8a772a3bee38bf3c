"""MagMax: of each parameter, the task's value that is largest in magnitude."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.strategies.strategy import strategy


@strategy(scale=0.5)
def magmax(taus: Tensor) -> Tensor:
    """τ_p = τ_{t*,p} with t* = argmax_t |τ_{t,p}|; equal magnitudes go to the later task.

    Marczak et al. 2024, Eq. 2. On independently fine-tuned encoders (method=ind) this is MaxAbs.
    """
    largest, smallest = taus.amax(0), taus.amin(0)
    merged = torch.where(largest > -smallest, largest, smallest)
    tied = (largest == -smallest) & (largest > 0)
    if bool(tied.any()):  # +x and −x: rare in float32, common in what was trained in bfloat16
        winners = taus[0]
        for tau in taus[1:]:
            winners = torch.where(tau.abs() >= winners.abs(), tau, winners)
        merged = torch.where(tied, winners, merged)
    return merged
