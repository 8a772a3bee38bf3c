"""Sign-max: of each parameter, the largest value that has the sign of the sum."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.strategies._folds import summed
from mergestream.strategies.strategy import strategy


@strategy(scale=0.5)
def sign_max(taus: Tensor) -> Tensor:
    """τ_p = s_p · max_t max(0, s_p τ_{t,p}) with the elected sign s_p = sgn Σ_t τ_{t,p}; 0 where the sum is 0.

    The unified task vector of EMR-Merging, Huang et al. 2024, section 3.2, which elects a sign as TIES does and so
    never keeps a value that most of the mass disagrees with. No λ is published for it alone; MagMax's is the default,
    as both keep largest magnitudes.
    """
    mass, largest, smallest = summed(taus), taus.amax(0), taus.amin(0)
    # Rounding may leave a sum a sign that no value has; 0 is then the largest value of that sign.
    return torch.where(mass > 0, largest.clamp(min=0), torch.where(mass < 0, smallest.clamp(max=0), 0.0))
