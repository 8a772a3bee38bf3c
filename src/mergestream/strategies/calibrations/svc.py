"""SVC: a direction that several tasks share counts once, by rescaling the singular values of what was merged."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.runtime.rules import require_number
from mergestream.strategies._folds import total
from mergestream.strategies._matrices import svd
from mergestream.strategies.calibrations.calibration import calibration
from mergestream.strategies.task_vectors import Rows

# Tables of vectors, which multiply no activations: the published code leaves them as they are.
TABLES = ("embed", "text_projection")
PUBLISHED = {"": {"alpha": 0.1}, "tsv": {"alpha": 1.0}, "wudi": {"alpha": 1.0}, "iso_cts": {"alpha": 0.2}}


def check(*, alpha: float | None, coefficient: float | None) -> None:
    """Check the options.

    Raises:
        UserError: if alpha is not positive, or coefficient is no number.
    """
    if alpha is not None:
        require_number("calibration.alpha", alpha, "positive", lambda x: x > 0)
    if coefficient is not None:
        require_number("calibration.coefficient", coefficient, "or null for the strategy's published λ")


@calibration(scale=1.0, matrices=True, check=check, published=PUBLISHED)
def svc(
    merged: Tensor, taus: Rows, *, name: str, alpha: float | None = None, coefficient: float | None = None
) -> Tensor:
    """σ_r ← σ_r · T / Σ_t max(α, s_tr), with M = c·τ = U Σ Vᵀ for a matrix, and s_tr = ⟨u_rᵀM, u_rᵀτ_t⟩ / ‖u_rᵀτ_t‖².

    Singular Value Calibration, Li et al. 2026, arXiv:2602.05536. s_tr says how often M counts what task t does in
    direction u_r: once for a single task. Where a task does nothing, up to rounding, s_tr is 0; the published code
    bounds the denominator by 1e-12 instead, which depends on the scale of the weights. Where all σ_r are equal, as
    iso_c and iso_cts make them, any directions are singular vectors; those that diagonalise Σ_t τ_t are taken, where
    rounding decides in the published code. Embeddings, text_projection and all that is not a matrix are c·τ, as there.

    Args:
        merged: τ, what the strategy made of a matrix, float32 [m, n], or of a block of another weight, [n].
        taus: τ_1 … τ_T, of the same shape.
        name: the weight.
        alpha: α, the least that a task counts; with 1, no singular value grows. None is the published value for the
            strategy: 1 for tsv and wudi, 0.2 for iso_cts, 0.1 for all others.
        coefficient: c; None is the strategy's published λ, as in the published code.
    """
    assert alpha is not None  # `published` has it
    assert coefficient is not None
    matrix = merged * coefficient
    if matrix.dim() != 2 or not matrix.numel() or any(table in name for table in TABLES):
        return matrix
    U, S, Vt = _directions(matrix, taus)
    counted, noise = torch.zeros_like(S), torch.finfo(S.dtype).eps * max(matrix.shape) ** 0.5
    for tau in taus:
        responses = U.T @ tau  # u_rᵀτ_t, [r, n]
        squares, limit = responses.square().sum(1), (noise * tau.norm()) ** 2
        agreements = S * (responses * Vt).sum(1)  # u_rᵀM is σ_r v_rᵀ
        counted += torch.where(squares > limit, agreements / squares, 0.0).clamp(min=alpha)
    # Adding the difference keeps M to the bit where nothing changes.
    return matrix + (U * (S * (len(taus) / counted - 1))) @ Vt


def _directions(matrix: Tensor, taus: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Return the singular value decomposition of `matrix`, with definite directions if all its values are equal."""
    U, S, Vt = svd(matrix)
    if len(S) > 1 and S[0] - S[-1] <= torch.finfo(S.dtype).eps ** 0.5 * S[0]:
        inside = U.T @ total(taus) @ Vt.T
        turn = torch.linalg.eigh(inside + inside.T).eigenvectors
        U, Vt = U @ turn, turn.T @ Vt
    return U, S, Vt
