"""Task arithmetic: the sum of the task vectors."""

from __future__ import annotations

from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies.strategy import strategy


@strategy(scale=0.3, rows=True, carries=True, running=True)
def task_arithmetic(taus: Tensor) -> Tensor:
    """τ = Σ_t τ_t. Ilharco et al. 2023, section 2."""
    return total(taus)
