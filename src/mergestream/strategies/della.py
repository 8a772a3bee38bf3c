"""DELLA: drop small parameters more often than large ones, rescale, elect signs, average."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_fraction
from mergestream.strategies._draws import draws
from mergestream.strategies._folds import elected
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy


@strategy(
    scale=0.55,
    whole=True,
    reference=Reference(
        "DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling",
        "2024",
        "https://arxiv.org/abs/2406.11617",
    ),
)
def della(taus: Tensor, *, name: str, density: float = 0.5, window: float = 0.2, seed: int = 5) -> Tensor:
    """τ_p = mean of those of the kept and rescaled τ_{t,p} that have the sign of their sum.

    MAGPRUNE: a parameter survives with a probability that grows linearly with the rank of its magnitude in its row,
    from density − window/2 to density + window/2, and is divided by that probability. Deep et al. 2024, sections
    3.1–3.3. No λ is published for this protocol; the default is that of TIES, whose election it shares.

    Args:
        taus: the stack of a whole weight; overwritten.
        name: the weight; a key of the draws.
        density: mean probability to survive, in (0, 1].
        window: ε, the difference in probability between the largest and the smallest parameter of a row.
        seed: a key of the draws.

    Raises:
        UserError: if an option is out of range.
    """
    require_fraction("strategy.density", density)
    require_fraction("strategy.window", window, zero=True)
    low, high = density - window / 2, density + window / 2
    if low <= 0 or high > 1:
        raise UserError(
            "strategy.density ± strategy.window/2 must lie in (0, 1]; "
            f"got strategy.density={density} and strategy.window={window}"
        )

    rows = taus.view(len(taus), -1, taus.shape[-1]) if taus.dim() > 2 else taus.view(len(taus), 1, -1)
    for t, tau in enumerate(rows):
        # A stable sort ranks equal magnitudes, common in bfloat16, by position.
        rank = tau.abs().argsort(dim=1, stable=True).argsort(dim=1)
        chance = low + (high - low) * rank / max(1, tau.shape[1] - 1)
        drawn = torch.from_numpy(draws(0, tau.numel(), seed, name, t) / 2**32).view(tau.shape)
        tau.mul_(drawn.to(tau.device) < chance).div_(chance)
    return elected(taus)[0]
