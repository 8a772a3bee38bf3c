"""TSV-Merge: the leading singular vectors of each task, made orthogonal to those of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.strategies._matrices import nearest_orthonormal, on_matrices, svd
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Rows


@strategy(
    scale=1.0,
    streams=True,
    whole=True,
    reference=Reference(
        "Task Singular Vectors: Reducing Task Interference in Model Merging",
        "CVPR 2025",
        "https://arxiv.org/abs/2412.00081",
    ),
)
@on_matrices
def tsv(taus: Rows) -> Tensor:
    """τ = Û diag(S) V̂ᵀ, with U = [U_1 … U_T] the first r/T singular vectors of each τ_t.

    Û is the orthonormal matrix nearest to U; S and V̂ likewise. Weights that are not matrices are averaged. Gargiulo et
    al. 2025, Algorithm 1, with λ = 1.

    Args:
        taus: T tensors of one shape, a whole weight.
    """
    rank = min(taus.shape[1:])
    kept = max(1, rank // len(taus))
    left, values, right = [], [], []
    for tau in taus:
        U, S, Vt = svd(tau)
        left.append(U[:, :kept].clone())
        values.append(S[:kept].clone())
        right.append(Vt[:kept].clone())
    # With more tasks than rank, the last vectors do not fit into an orthonormal basis.
    U, S, Vt = torch.cat(left, 1)[:, :rank], torch.cat(values)[:rank], torch.cat(right)[:rank]
    return nearest_orthonormal(U) * S @ nearest_orthonormal(Vt)
