"""Task arithmetic: the sum of the task vectors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mergestream.strategies.strategy import strategy


@strategy(scale=0.3)
def task_arithmetic(taus: Sequence[Tensor]) -> Tensor:
    """τ = Σ_t τ_t. Ilharco et al. 2023, section 2."""
    return sum(taus[1:], start=taus[0])
