"""Linear algebra of the strategies on weight matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from mergestream.strategies.average import average
from mergestream.strategies.task_vectors import Rows


def on_matrices(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Apply `function` to weights of two dimensions, and average all others: biases, norms, convolutions.

    The merge of a single task is that task.
    """

    @wraps(function)
    def wrapped(taus: Tensor | Rows, **options: Any) -> Tensor:
        if len(taus) == 1:
            return next(iter(taus)).clone()
        matrices = len(taus.shape) == 3 and math.prod(taus.shape) > 0
        return function(taus, **options) if matrices else average(taus)

    return wrapped


def svd(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return U [m, r], S [r], Vᵀ [r, n] with matrix = U diag(S) Vᵀ and r the numerical rank.

    The singular vectors of a singular value that is zero up to rounding are arbitrary, and differ between machines. The
    published codes keep them. They would matter for low-rank updates such as adapters.
    """
    U, S, Vt = torch.linalg.svd(matrix, full_matrices=False)
    rank = int(S.gt(S[:1] * max(matrix.shape) * torch.finfo(S.dtype).eps).sum())
    return U[:, :rank], S[:rank], Vt[:rank]


def nearest_orthonormal(matrix: Tensor) -> Tensor:
    """Return the matrix with orthonormal rows or columns that is nearest in the Frobenius norm (Procrustes).

    A rank-deficient matrix has a partial isometry instead, which maps only what the matrix spans.
    """
    left, _, right = svd(matrix)
    return left @ right
