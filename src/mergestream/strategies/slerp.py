"""SLERP: the spherical mean of the task vectors, taken one after the other."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies._gram import grams
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Rows, SurveyedVectors

PARALLEL = 1e-6  # a sine below this is too small to divide by


def survey(vectors: SurveyedVectors) -> dict[str, Any]:
    """Compute the weight of each task vector in the mean from the angles between the whole task vectors."""
    gram = torch.stack(list(grams(vectors).values())).sum(0)
    return {"weights": weights(gram)}


def weights(gram: Tensor) -> list[float]:
    """Return w with slerp(τ_1 … τ_T) = Σ_t w_t τ_t.

    Args:
        gram: inner products of the task vectors, float64 [T, T].
    """
    result = torch.zeros(len(gram), dtype=torch.float64)
    result[0] = 1.0
    for t in range(1, len(gram)):
        # slerp(m, τ; s) with s = 1/(t+1), so that all tasks end up with the same share.
        share = 1 / (t + 1)
        norms = math.sqrt(max(0.0, float(result @ gram @ result)) * float(gram[t, t]))
        cosine = float(result @ gram[t]) / norms if norms else 1.0
        angle = math.acos(max(-1.0, min(1.0, cosine)))
        if math.sin(angle) > PARALLEL:
            past, present = math.sin((1 - share) * angle) / math.sin(angle), math.sin(share * angle) / math.sin(angle)
        else:
            past, present = 1 - share, share
        result *= past
        result[t] = present
    return result.tolist()


@strategy(
    scale=1.0,
    streams=True,
    propagates_nan=True,
    survey=survey,
    reference=Reference(
        "Animating Rotation with Quaternion Curves", "SIGGRAPH 1985", "https://doi.org/10.1145/325334.325242"
    ),
)
def slerp(taus: Rows, *, weights: list[float]) -> Tensor:
    """m_1 = τ_1, m_t = slerp(m_{t−1}, τ_t; 1/t), τ = m_T; Ω is the angle between the whole vectors.

    slerp(a, b; s) = sin((1−s)Ω)/sin Ω · a + sin(sΩ)/sin Ω · b. Shoemake 1985, Eq. (slerp); means of more than two
    models as in Dziadzio et al. 2025. The result lies in the span of the task vectors, so T weights describe it.

    Args:
        taus: T tensors of one shape.
        weights: one for each task vector.
    """
    return total(taus, weights)
