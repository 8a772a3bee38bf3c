"""MetaGPT: the sum of the task vectors, each weighted by its share of their squared lengths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mergestream.strategies._folds import total
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy, sum_of_squares
from mergestream.strategies.task_vectors import CHUNK, Block, Rows, SurveyedVectors


def survey(vectors: SurveyedVectors) -> dict[str, Any]:
    """Compute the weight of each task.

    Args:
        vectors: all task vectors.
    """

    def squares(_block: Block, _base: Tensor, taus: Rows) -> list[list[float]]:
        return [[sum_of_squares(chunk) for chunk in tau.split(CHUNK)] for tau in taus]

    per_block = vectors.map_rows(squares, vectors.blocks(vectors.names, streamed=True))
    lengths = [math.fsum(value for chunks in of_task for value in chunks) for of_task in zip(*per_block, strict=True)]
    everything = sum(lengths)
    if not math.isfinite(everything):
        vectors.check()
    return {"weights": [length / everything if everything else 1 / len(lengths) for length in lengths]}


@strategy(
    scale=1.0,
    survey=survey,
    streams=True,
    propagates_nan=True,
    reference=Reference(
        "MetaGPT: Merging Large Language Models Using Model Exclusive Task Arithmetic",
        "EMNLP 2024",
        "https://arxiv.org/abs/2406.11385",
    ),
)
def metagpt(taus: Rows, *, weights: Sequence[float]) -> Tensor:
    """τ = Σ_t λ_t τ_t with λ_t = ‖τ_t‖² / Σ_s ‖τ_s‖², with lengths over the whole model. Zhou et al. 2024.

    Args:
        taus: T tensors of one shape.
        weights: λ_1 … λ_T, which sum to one.
    """
    return total(taus, weights)
