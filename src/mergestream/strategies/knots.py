"""KnOTS: one singular value decomposition of all tasks side by side, then TIES in their shared basis."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.runtime.rules import require_fraction
from mergestream.strategies._folds import elected, trimmed_to_share
from mergestream.strategies._matrices import on_matrices, svd
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy


@strategy(
    scale=0.55,
    whole=True,
    reference=Reference("Model merging with SVD to tie the Knots", "ICLR 2025", "https://arxiv.org/abs/2410.19735"),
)
@on_matrices
def knots(taus: Tensor, *, density: float = 0.2) -> Tensor:
    """τ = U diag(S) · ties(V_1ᵀ … V_Tᵀ), with U diag(S) [V_1ᵀ … V_Tᵀ] = [τ_1 … τ_T]; KnOTS-TIES.

    TIES trims each V_t to its largest magnitudes, elects a sign for each entry and averages the values that agree.
    Weights that are not matrices are averaged. Stoica et al. 2025, section 4. The paper chooses λ on validation data;
    the default is that of TIES.

    Args:
        taus: the stack [T, m, n] of a whole weight.
        density: share of each V_t that survives, in (0, 1].

    Raises:
        UserError: if density is out of range.
    """
    require_fraction("strategy.density", density)
    tasks, rows, columns = taus.shape
    U, S, Vt = svd(taus.transpose(0, 1).reshape(rows, tasks * columns))
    if not len(S):
        return torch.zeros(rows, columns, device=taus.device)
    parts = Vt.reshape(len(S), tasks, columns).transpose(0, 1)
    return (U * S) @ elected(trimmed_to_share(parts, density))[0]
