"""DARE: drop parameters of each task vector at random, rescale the rest, add up."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mergestream.runtime.rules import require_fraction
from mergestream.strategies._draws import draws
from mergestream.strategies._folds import keep, summed
from mergestream.strategies.strategy import strategy


@strategy(scale=0.3)
def dare(taus: Tensor, *, name: str, start: int = 0, density: float = 0.5, seed: int = 5) -> Tensor:
    """τ = Σ_t m_t ∘ τ_t / density with m_t ~ Bernoulli(density), drawn for each parameter and task.

    Yu et al. 2024, section 3.2, with task arithmetic, whose λ is the default.

    Args:
        taus: the stack [T, n].
        name: the weight; keys the draws.
        start: index of the first element.
        density: 1 − p, the share of the parameters that survives, in (0, 1].
        seed: keys the draws.

    Raises:
        UserError: if density is out of range.
    """
    return summed(dropped(taus, name, start, density, seed))


def dropped(taus: Tensor, name: str, start: int, density: float, seed: int) -> Tensor:
    """Each task vector with all but a share `density` of its parameters set to zero, and the rest rescaled."""
    require_fraction("strategy.density", density)
    size = taus[0].numel()
    drawn = np.stack([draws(start, size, seed, name, t) for t in range(len(taus))])
    return keep(taus, (drawn < density * 2**32).reshape(taus.shape)).div_(density)
