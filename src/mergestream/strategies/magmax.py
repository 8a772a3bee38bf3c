"""MagMax: of each parameter, the task's value that is largest in magnitude."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mergestream.strategies.strategy import strategy


@strategy(scale=0.5)
def magmax(taus: Sequence[Tensor]) -> Tensor:
    """τ_p = τ_{t*,p} with t* = argmax_t |τ_{t,p}|; equal magnitudes go to the later task.

    Marczak et al. 2024, Eq. 2. On independently fine-tuned encoders (method=ind) this is MaxAbs.
    """
    merged = taus[0]
    for tau in taus[1:]:
        merged = torch.where(tau.abs() >= merged.abs(), tau, merged)
    return merged
