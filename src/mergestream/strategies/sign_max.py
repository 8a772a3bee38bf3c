"""Sign-max: for each parameter, the largest value with the sign of the sum."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.strategies._folds import summed
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy


@strategy(
    scale=0.5,
    reference=Reference(
        "EMR-Merging: Tuning-Free High-Performance Model Merging", "NeurIPS 2024", "https://arxiv.org/abs/2405.17461"
    ),
)
def sign_max(taus: Tensor) -> Tensor:
    """τ_p = s_p · max_t max(0, s_p τ_{t,p}) with the elected sign s_p = sgn Σ_t τ_{t,p}; 0 where the sum is 0.

    The unified task vector of EMR-Merging, Huang et al. 2024, section 3.2. It elects signs as TIES does, so it never
    keeps a value that most of the mass opposes. No λ is published for the unified vector alone; the default is
    MagMax's, since both keep the largest magnitudes.
    """
    mass, largest, smallest = summed(taus), taus.amax(0), taus.amin(0)
    # Rounding may give a sum a sign that no value has; the largest value of that sign is then 0.
    return torch.where(mass > 0, largest.clamp(min=0), torch.where(mass < 0, smallest.clamp(max=0), 0.0))
