"""Task arithmetic: the sum of the task vectors."""

from __future__ import annotations

from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import Running, strategy
from mergestream.strategies.task_vectors import Rows


@strategy(
    scale=0.3,
    streams=True,
    propagates_nan=True,
    running=Running(),
    reference=Reference("Editing Models with Task Arithmetic", "ICLR 2023", "https://arxiv.org/abs/2212.04089"),
)
def task_arithmetic(taus: Rows) -> Tensor:
    """τ = Σ_t τ_t. Ilharco et al. 2023, section 2."""
    return total(taus)
