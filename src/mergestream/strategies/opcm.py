"""OPCM: merge one task after another, each projected away from the directions that the merge already uses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from mergestream.runtime.rules import require_fraction
from mergestream.strategies._matrices import svd
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import MERGED, Running, State, strategy, sum_of_squares
from mergestream.strategies.task_vectors import Block, Reading, Rows, SurveyedVectors


def survey(vectors: SurveyedVectors, *, alpha: float = 0.5) -> dict[str, Any]:
    """Compute the factor that gives the merged vector the mean length of the task vectors.

    Args:
        vectors: all task vectors.
        alpha: see `opcm`.

    Raises:
        UserError: if alpha is out of range.
    """
    require_fraction("strategy.alpha", alpha, zero=True)

    def squares(_block: Block, _base: Tensor, taus: Rows) -> list[float]:
        lengths: list[float] = []

        def measured() -> Iterator[Tensor]:  # so that each task vector is read once
            for tau in taus:
                lengths.append(sum_of_squares(tau))
                yield tau

        merged = accumulated(measured(), alpha)
        return [*lengths, sum_of_squares(merged)]

    blocks = vectors.blocks(vectors.names, whole=True)
    per_weight = vectors.map_rows(squares, blocks, Reading(finite=True))  # an SVD fails on NaN
    *lengths, merged = (math.sqrt(math.fsum(of_weights)) for of_weights in zip(*per_weight, strict=True))
    if not math.isfinite(sum(lengths) + merged):
        vectors.check()
    return {"alpha": alpha, "factor": _factor(lengths, merged)}


def _factor(lengths: Sequence[float], length: float) -> float:
    """Return what gives a merge of this length the mean length of the task vectors."""
    return sum(lengths) / len(lengths) / length if length else 0.0


def _step(state: State, tau: Tensor, *, alpha: float) -> State:
    """Return M_t of a weight from M_{t−1}; see `opcm`."""
    require_fraction("strategy.alpha", alpha, zero=True)
    return {MERGED: _projected(state[MERGED], tau, alpha) if state else tau.clone()}


def _projected(merged: Tensor, tau: Tensor, alpha: float) -> Tensor:
    """Return M_t of a weight from M_{t−1} and τ_t; see `opcm`."""
    if merged.dim() != 2:
        return merged + tau
    U, S, Vt = svd(merged)
    inside = U.T @ tau @ Vt.T
    outside = tau - U @ inside @ Vt  # the part that the singular vectors do not span stays
    leading = int((S.cumsum(0) <= alpha * S.sum()).sum())
    inside.diagonal().zero_()
    inside[:leading, :leading] = 0
    return merged + U @ inside @ Vt + outside


@strategy(
    scale=1.0,
    survey=survey,
    streams=True,
    whole=True,
    running=Running(step=_step, factor=_factor),
    reference=Reference(
        "Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual Model Merging",
        "NeurIPS 2025",
        "https://arxiv.org/abs/2501.09522",
    ),
)
def opcm(taus: Rows, *, alpha: float, factor: float) -> Tensor:
    """M_1 = τ_1, M_t = M_{t−1} + P(τ_t), τ = M_T · mean_t ‖τ_t‖ / ‖M_T‖, with lengths over the whole model.

    P expresses τ_t in the singular vectors of M_{t−1}, drops the diagonal and the block of the leading vectors, which
    hold a share `alpha` of the sum of the singular values, and transforms back. Weights that are not matrices are
    added. Tang et al. 2025, Eq. 5–8. (Their M has a factor 1/λ_t after each task; it cancels in the next, so it is
    applied once, and a running merge keeps M_T and the lengths.)

    Args:
        taus: T tensors of one shape, a whole weight.
        alpha: in [0, 1); a larger one protects more directions of the past.
        factor: mean_t ‖τ_t‖ / ‖M_T‖.
    """
    return accumulated(taus, alpha) * factor


def accumulated(taus: Iterable[Tensor], alpha: float) -> Tensor:
    """Return M_T of one weight."""
    rows = iter(taus)
    merged = next(rows).clone()
    for tau in rows:
        merged = _projected(merged, tau, alpha)
    return merged
