"""What the strategies on weight matrices share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from mergestream.strategies.average import average


def on_matrices(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Apply `function` to weights of two dimensions and average all others: biases, norms, convolutions.

    A single task is its own merge.
    """

    @wraps(function)
    def wrapped(taus, **options) -> Tensor:
        if len(taus) == 1:
            return next(iter(taus)).clone()  # nothing to merge
        matrices = len(taus.shape) == 3 and taus.shape[1:].numel() > 0
        return function(taus, **options) if matrices else average(taus)

    return wrapped


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], S [r], Vᵀ [r, n] with r the numerical rank and matrix = U diag(S) Vᵀ.

    The singular vectors of a singular value that is zero but for rounding are any vectors, and would differ from
    machine to machine; the published codes keep them. They matter for low-rank updates, such as adapters.
    """
    U, S, Vt = torch.linalg.svd(matrix, full_matrices=False)
    rank = int(S.gt(S[:1] * max(matrix.shape) * torch.finfo(S.dtype).eps).sum())
    return U[:, :rank], S[:rank], Vt[:rank]


def nearest_orthonormal(matrix: Tensor) -> Tensor:
    """The matrix of the same shape with orthonormal rows or columns that is closest in Frobenius norm (Procrustes).

    Where the rank is lower than that, a partial isometry: only what `matrix` spans.
    """
    left, _, right = svd(matrix)
    return left @ right
