"""Inner products of task vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.strategies.task_vectors import CHUNK, Block, SurveyedVectors

COLUMNS = 1 << 13


def grams(vectors: SurveyedVectors) -> dict[str, Tensor]:
    """Return ⟨τ_s, τ_t⟩ over each weight, float64 [T, T].

    The sum runs over chunks in their order, so that neither block size nor threads change it.
    """

    def products(_block: Block, _base: Tensor, taus_TN: Tensor) -> list[Tensor]:
        return [_product(chunk) for chunk in taus_TN.split(CHUNK, dim=1)]

    result = {}
    for name in vectors.names:
        per_block = vectors.map(products, vectors.blocks([name]))
        result[name] = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
        for product in (product for block in per_block for product in block):
            result[name] += product.cpu()
        if not bool(result[name].isfinite().all()):
            vectors.check()
    return result


def _product(taus_TN: Tensor) -> Tensor:
    """Return τ τᵀ in float64, a few columns at a time: float64 copies of all columns would take twice their memory."""
    product = torch.zeros(len(taus_TN), len(taus_TN), dtype=torch.float64, device=taus_TN.device)
    for columns in taus_TN.split(COLUMNS, dim=1):
        wide = columns.double()
        product += wide @ wide.T
    return product
