"""Iso-C: the sum of the task vectors, with all singular values made equal."""

from __future__ import annotations

from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies._matrices import on_matrices, svd
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Rows


@strategy(
    scale=1.0,
    streams=True,
    whole=True,
    reference=Reference(
        "No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces",
        "ICML 2025",
        "https://arxiv.org/abs/2502.04959",
    ),
)
@on_matrices
def iso_c(taus: Rows) -> Tensor:
    """τ = σ̄ U Vᵀ, with U diag(σ) Vᵀ = Σ_t τ_t and σ̄ the mean of σ; the mean on weights that are not matrices.

    Marczak et al. 2025, section 4.1. The paper chooses λ on validation data; the default is λ = 1.

    Args:
        taus: T tensors of one shape, a whole weight.
    """
    U, S, Vt = svd(total(taus))
    return (S.mean() if len(S) else 0.0) * (U @ Vt)
