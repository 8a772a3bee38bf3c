"""RegMean: the linear layer whose outputs are nearest to those of every task's layer on that task's inputs."""

from __future__ import annotations

from itertools import repeat
from typing import Any

import torch
from torch import Tensor

from mergestream.runtime.rules import require_fraction
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import MERGED, Running, State, strategy
from mergestream.strategies.task_vectors import Curvature, Rows, SurveyedVectors


def survey(vectors: SurveyedVectors, *, shrink: float = 0.95) -> dict[str, Any]:
    """Open the Gram matrices.

    Args:
        vectors: all task vectors.
        shrink: what the off-diagonal elements of each Gram matrix are multiplied by, in [0, 1).

    Raises:
        UserError: if shrink is out of range, or the Gram matrices of a task are missing.
    """
    _check(None, shrink=shrink)
    return {"grams": vectors.curvature("gram"), "shrink": shrink}


def _check(_shapes: object, *, shrink: float) -> None:
    require_fraction("strategy.shrink", shrink, zero=True)


def _step(state: State, tau: Tensor, *, curvature: Tensor | None, shrink: float) -> State:
    """Add one task to Σ τ_t of a weight, and to Σ τ_t G_t and Σ G_t of that of a linear layer, in float64."""
    added = {MERGED: tau.clone()}
    if tau.dim() == 2 and curvature is not None:
        regular = curvature.double() * shrink
        regular.diagonal().copy_(curvature.diagonal())
        added |= {"right": tau.double() @ regular, "left": regular}
    return {key: state[key] + value for key, value in added.items()} if state else added


def _finish(state: State, tasks: int) -> Tensor:
    mean = state[MERGED] / tasks
    return _solved(state["left"], state["right"], mean) if "left" in state else mean


@strategy(
    scale=1.0,
    survey=survey,
    streams=True,
    whole=True,
    running=Running(step=_step, finish=_finish, check=_check),
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
    linear = len(taus.shape) == 3 and name in grams
    state: State = {}
    for tau, gram in zip(taus, grams.tensors(name) if linear else repeat(None, len(taus)), strict=True):
        state = _step(state, tau, curvature=gram, shrink=shrink)
    return _finish(state, len(taus))


def _solved(left: Tensor, right: Tensor, mean: Tensor) -> Tensor:
    """Return right · left⁻¹, with the columns of `mean` where `left` is zero."""
    unused = left.diagonal() == 0
    left = left + torch.diag(unused.to(left.dtype))
    right = torch.where(unused, mean.double(), right)
    return torch.linalg.solve(left, right, left=False).float()
