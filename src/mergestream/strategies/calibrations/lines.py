"""LiNeS: deeper blocks get more of the merged task vector."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import is_number
from mergestream.strategies._folds import total
from mergestream.strategies.calibrations.calibration import SELECT, MergedVector, calibration
from mergestream.strategies.depth import depths
from mergestream.strategies.task_vectors import CHUNK, Block, Rows, SurveyedVectors


def check(*, beta: float | str) -> None:
    """Check the options.

    Raises:
        UserError: if beta is neither select nor a number that is not negative.
    """
    if beta != SELECT and not (is_number(beta) and float(beta) >= 0):
        raise UserError(
            f"calibration.beta must be a number, 0 or more, or {SELECT} to choose it on validation data; got "
            f"calibration.beta={beta}"
        )


def survey(merged: MergedVector, vectors: SurveyedVectors, *, beta: float | str = SELECT) -> dict[str, Any]:
    """Compute the factor of each weight.

    Args:
        merged: the merged task vector.
        vectors: all task vectors.
        beta: β, how much more the last block gets than the first; ``select`` chooses it on validation data.

    Raises:
        UserError: if the merged task vector is zero.
    """
    where = depths(vectors.tensors, "calibration=lines")
    alpha = _alpha(merged, vectors)
    inside = {name: depth.fraction if depth.block is not None else 0.0 for name, depth in where.items()}
    return {"factors": {name: alpha + float(beta) * inside[name] for name in vectors.names}}


@calibration(scale=1.0, layered=True, survey=survey, check=check, selectable="beta")
def lines(merged: Tensor, taus: Rows, *, name: str, factors: Mapping[str, float]) -> Tensor:
    """τ_l ← (α + β · l/(L − 1)) · τ_l in block l of L, from 0, and α · τ elsewhere; α = ‖Σ_t τ_t‖ / (T ‖τ‖).

    Layer-increasing Network Scaling, Wang et al., ICLR 2025, Section 4.2, with the sum of magnitudes as the norm and
    the factor α outside of the blocks, as in the published code. β takes the place of λ.

    Args:
        merged: τ, a block of a weight.
        taus: not read.
        name: the weight.
        factors: of each weight.
    """
    return merged * factors[name]


def _alpha(merged: MergedVector, vectors: SurveyedVectors) -> float:
    """Return ‖Σ_t τ_t‖ / (T ‖τ‖), summed over chunks, so that neither block size nor threads change a bit."""

    def magnitudes(block: Block, _base: Tensor, taus: Rows) -> list[tuple[float, float]]:
        pairs = zip(total(taus).split(CHUNK), merged.read(block).split(CHUNK), strict=True)
        return [(_magnitude(summed), _magnitude(chunk)) for summed, chunk in pairs]

    found = vectors.map_rows(magnitudes, vectors.blocks(vectors.names, streamed=True))
    of_sum, of_merged = (math.fsum(sums) for sums in zip(*(pair for block in found for pair in block), strict=True))
    if of_merged == 0:
        raise UserError(
            "calibration=lines divides by the length of the merged task vector, which is zero. Leave it out"
        )
    return of_sum / (len(vectors) * of_merged)


def _magnitude(values: Tensor) -> float:
    return float(values.abs().sum(dtype=torch.float64))
