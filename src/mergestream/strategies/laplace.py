"""Laplace-optimal steps: move from the merge so far to each new encoder, as far as their curvatures say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Block, Curvature, Reading, Rows, SurveyedVectors


def survey(vectors: SurveyedVectors) -> dict[str, Any]:
    """Find how much of each task vector the merge holds.

    One pass over all weights gives every τ_aᵀ F_s τ_b, from which all steps follow.

    Args:
        vectors: all task vectors.

    Raises:
        UserError: if the Fisher information of a task is missing.
    """
    fishers: Curvature = vectors.curvature("fisher")

    def products(block: Block, _base: Tensor, taus: Tensor) -> np.ndarray:
        found = [(taus * f) @ taus.T for f in fishers.rows(block.name, block.start, taus.shape[1:])]
        return torch.stack(found).double().cpu().numpy()

    blocks = vectors.blocks(vectors.names)
    return {"weights": _weights(np.sum(vectors.map(products, blocks, Reading(finite=True)), axis=0))}


@strategy(
    scale=1.0,
    survey=survey,
    streams=True,
    propagates_nan=True,
    needs="fisher",
    reference=Reference(
        "BECAME: Bayesian Continual Learning with Adaptive Model Merging",
        "ICML 2025",
        "https://arxiv.org/abs/2504.02666",
    ),
)
def laplace(taus: Rows, *, weights: Sequence[float]) -> Tensor:
    """M_1 = τ_1, M_t = M_{t−1} + λ_t d with d = τ_t − M_{t−1}, λ_t = dᵀF_t d / dᵀ(F_1 + … + F_t) d, τ = M_T.

    λ_t minimises the sum of the two losses along d in the Laplace approximation, where the loss of a task grows as
    ½ (θ − θ_t)ᵀ F_t (θ − θ_t) (MacKay 1992; Li et al. 2025). It is ½ where no task has curvature along d.

    Args:
        taus: T tensors of one shape.
        weights: how much of each task vector M_T holds; they sum to one.
    """
    return total(taus, weights)


def _weights(products: np.ndarray) -> list[float]:
    """Return the share of each τ_t in M_T from τ_aᵀ F_s τ_b at [s, a, b]."""
    tasks = len(products)
    share = np.zeros(tasks)
    share[0] = 1.0
    for t in range(1, tasks):
        d = np.eye(tasks)[t] - share
        new, old = d @ products[t] @ d, d @ products[:t].sum(0) @ d
        share += d * (new / (new + old) if new + old > 0 else 0.5)
    return share.tolist()
