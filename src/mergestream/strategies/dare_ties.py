"""DARE-TIES: drop random parameters of each task vector, then elect signs and average as TIES does."""

from __future__ import annotations

from torch import Tensor

from mergestream.strategies._folds import elected
from mergestream.strategies.dare import dropped
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy


@strategy(
    scale=0.55,
    reference=Reference(
        "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch",
        "ICML 2024",
        "https://arxiv.org/abs/2311.03099",
    ),
)
def dare_ties(taus: Tensor, *, name: str, start: int = 0, density: float = 0.5, seed: int = 5) -> Tensor:
    """τ_p = mean of those of the dropped and rescaled τ_{t,p} that have the sign of their sum.

    Yu et al. 2024, section 3.2, combined with the election of TIES (Yadav et al. 2023), whose λ is the default.

    Args:
        taus: the stack [T, n]; overwritten.
        name: the weight; a key of the draws.
        start: position of the block in the weight; selects the draws.
        density: share of the parameters that survives, in (0, 1].
        seed: a key of the draws.

    Raises:
        UserError: if density is out of range.
    """
    return elected(dropped(taus, name, start, density, seed))[0]
