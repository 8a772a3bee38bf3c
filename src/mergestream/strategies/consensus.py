"""Consensus merging: the sum of the task vectors, without what fewer than two tasks need."""

from __future__ import annotations

from torch import Tensor

from mergestream.runtime.rules import require_number, require_whole
from mergestream.strategies._folds import summed
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy


@strategy(
    scale=0.3,
    reference=Reference(
        "Localizing Task Information for Improved Model Merging and Compression",
        "ICML 2024",
        "https://arxiv.org/abs/2405.07813",
    ),
)
def consensus(taus: Tensor, *, threshold: float = 0.4, agree: int = 2) -> Tensor:
    """τ = Σ_t τ_t where at least `agree` tasks need the parameter, else 0. Wang et al. 2024.

    Task t needs it if |τ_t| ≥ threshold · |Σ_s τ_s − τ_t|. With fewer tasks than `agree`, all of them must. The paper
    chooses the threshold of each task on validation data, from 0.2 to 0.6; here, one is for all.

    Args:
        taus: [T, n].
        threshold: at least 0; 0 keeps all.
        agree: 1 leaves out what no task needs, 2 (published) also what is selfish.

    Raises:
        UserError: if an option is out of range.
    """
    require_number("strategy.threshold", threshold, "at least 0", lambda x: x >= 0)
    require_whole("strategy.agree", agree, 1)
    total = summed(taus)
    needed = (taus.abs() >= threshold * (total - taus).abs()).sum(0)
    return total.where(needed >= min(agree, len(taus)), 0.0)
