"""RegMean: the linear layer whose outputs are nearest to those of every task's layer on that task's inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mergestream.runtime.rules import require_fraction
from mergestream.strategies._folds import total
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Curvature, Rows, SurveyedVectors


def survey(vectors: SurveyedVectors, *, shrink: float = 0.95) -> dict[str, Any]:
    """Open the Gram matrices.

    Args:
        vectors: all task vectors.
        shrink: what the off-diagonal elements of each Gram matrix are multiplied by, in [0, 1).

    Raises:
        UserError: if shrink is out of range, or the Gram matrices of a task are missing.
    """
    require_fraction("strategy.shrink", shrink, zero=True)
    return {"grams": vectors.curvature("gram"), "shrink": shrink}


@strategy(
    scale=1.0,
    survey=survey,
    streams=True,
    whole=True,
    needs="gram",
    reference=Reference(
        "Dataless Knowledge Fusion by Merging Weights of Language Models",
        "ICLR 2023",
        "https://arxiv.org/abs/2212.09849",
    ),
)
def regmean(taus: Rows, *, name: str, grams: Curvature, shrink: float) -> Tensor:
    """τ = (Σ_t τ_t G_t) (Σ_t G_t)⁻¹ for the weight [out, in] of a linear layer; the mean of all other weights.

    G_t = X_tᵀX_t of the inputs of the layer, [in, in], with its off-diagonal elements times `shrink`. Jin et al. 2023,
    Eq. 2; written for weights, W = (Σ_t W_t G_t) (Σ_t G_t)⁻¹, it is the same. An input that is zero in every task
    leaves its column undetermined, which is then averaged.

    Args:
        taus: T tensors of one shape, a whole weight.
        name: of the weight.
        grams: G_t of every linear layer.
        shrink: see `survey`.
    """
    if len(taus.shape) != 3 or name not in grams:
        return total(taus) / len(taus)
    width = taus.shape[2]
    right = torch.zeros(taus.shape[1:], dtype=torch.float64)
    left = torch.zeros(width, width, dtype=torch.float64)
    for tau, gram in zip(taus, grams.rows(name, 0, (width, width)), strict=True):
        diagonal = gram.diagonal().double()
        regular = gram.double() * shrink
        regular.diagonal().copy_(diagonal)
        right, left = right.to(tau.device) + tau.double() @ regular, left.to(tau.device) + regular
    return _solved(left, right, total(taus) / len(taus))


def _solved(left: Tensor, right: Tensor, mean: Tensor) -> Tensor:
    """Return right · left⁻¹, with the columns of `mean` where `left` is zero."""
    unused = left.diagonal() == 0
    left = left + torch.diag(unused.to(left.dtype))
    right = torch.where(unused, mean.double(), right)
    return torch.linalg.solve(left, right, left=False).float()
