"""DARE: drop random parameters of each task vector, rescale the rest, then sum."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from mergestream.runtime.rules import require_fraction
from mergestream.strategies._draws import draws
from mergestream.strategies._folds import keep, summed
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy


@strategy(
    scale=0.3,
    reference=Reference(
        "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
        "ICML 2024",
        "https://arxiv.org/abs/2311.03099",
    ),
)
def dare(taus: Tensor, *, name: str, start: int = 0, density: float = 0.5, seed: int = 5) -> Tensor:
    """τ = Σ_t m_t ∘ τ_t / density with m_t ~ Bernoulli(density), drawn for each parameter and task.

    Yu et al. 2024, section 3.2, combined with task arithmetic, whose λ is the default.

    Args:
        taus: the stack [T, n]; overwritten.
        name: the weight; a key of the draws.
        start: position of the block in the weight; selects the draws.
        density: 1 − p, the share of the parameters that survives, in (0, 1].
        seed: a key of the draws.

    Raises:
        UserError: if density is out of range.
    """
    return summed(dropped(taus, name, start, density, seed))


def dropped(taus: Tensor, name: str, start: int, density: float, seed: int) -> Tensor:
    """Set all but a share `density` of each task vector to zero, and rescale the rest; in place."""
    require_fraction("strategy.density", density)
    size = taus[0].numel()
    drawn = np.stack([draws(start, size, seed, name, t) for t in range(len(taus))])
    return keep(taus, (drawn < density * 2**32).reshape(taus.shape)).div_(density)
