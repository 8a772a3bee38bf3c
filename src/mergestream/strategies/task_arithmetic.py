"""Task arithmetic: the sum of the task vectors."""

from __future__ import annotations

from torch import Tensor

from mergestream.strategies.strategy import strategy


@strategy(scale=0.3)
def task_arithmetic(taus: Tensor) -> Tensor:
    """τ = Σ_t τ_t. Ilharco et al. 2023, section 2."""
    total = taus[0].clone()
    for tau in taus[1:]:  # one after the other: the order of a library's sum may depend on the size of the block
        total += tau
    return total
