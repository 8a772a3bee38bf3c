"""Iso-CTS: a common subspace of all tasks, completed by directions of each task, with equal singular values."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.runtime.rules import require_fraction
from mergestream.strategies._folds import total
from mergestream.strategies._matrices import nearest_orthonormal, on_matrices, svd
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
def iso_cts(taus: Rows, *, common: float = 0.8) -> Tensor:
    """τ = σ̄ Û V̂ᵀ, from the first singular vectors of Σ_t τ_t and those of each τ_t outside of their span.

    Û is the orthonormal matrix nearest to [U_common, U_1 … U_T], V̂ likewise; σ̄ is the mean of the singular values
    that belong to these vectors. Weights that are not matrices are averaged. Marczak et al. 2025, Algorithm 1. The
    paper chooses λ on validation data.

    Args:
        taus: T tensors of one shape, a whole weight.
        common: share of the rank that is common, in (0, 1].

    Raises:
        UserError: if common is out of range.
    """
    require_fraction("strategy.common", common)
    U, S, Vt = svd(total(taus))
    rank = min(taus.shape[1:])
    specific = round((rank - int(rank * common)) / len(taus))  # directions of each task
    shared = max(0, rank - specific * len(taus))
    left, values, right = [U[:, :shared]], [S[:shared]], [Vt[:shared]]
    for tau in taus if specific else ():
        own = svd(tau - left[0] @ (left[0].T @ tau))
        left.append(own[0][:, :specific].clone())
        values.append(own[1][:specific].clone())
        right.append(own[2][:specific].clone())
    U, S, Vt = torch.cat(left, 1)[:, :rank], torch.cat(values)[:rank], torch.cat(right)[:rank]
    return (S.mean() if len(S) else 0.0) * (nearest_orthonormal(U) @ nearest_orthonormal(Vt))
