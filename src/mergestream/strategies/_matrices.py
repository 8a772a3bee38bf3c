"""What the strategies on weight matrices share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor

from mergestream.strategies.average import average


def on_matrices(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Apply `function` to weights of two dimensions and average all others: biases, norms, convolutions."""

    @wraps(function)
    def wrapped(taus, **options) -> Tensor:
        if len(taus) == 1:
            return next(iter(taus)).clone()  # nothing to merge
        return function(taus, **options) if taus.shape[1:].numel() and len(taus.shape) == 3 else average(taus)

    return wrapped


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U [m, r], S [r], Vᵀ [r, n] with r = min(m, n) and matrix = U diag(S) Vᵀ."""
    return torch.linalg.svd(matrix, full_matrices=False)


def nearest_orthonormal(matrix: Tensor) -> Tensor:
    """The matrix of the same shape with orthonormal rows or columns that is closest in Frobenius norm (Procrustes)."""
    left, _, right = svd(matrix)
    return left @ right
