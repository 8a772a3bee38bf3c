"""Inner products between task vectors, summed in an order that no block size or thread changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mergestream.merging.vectors import Block, TaskVectors

COLUMNS = 1 << 13


def grams(vectors: TaskVectors) -> dict[str, Tensor]:
    """⟨τ_s, τ_t⟩ over each weight, float64 [T, T]."""
    from mergestream.merging.vectors import CHUNK

    def products(block: Block, _: Tensor, taus_TN: Tensor) -> list[Tensor]:
        return [_product(chunk) for chunk in taus_TN.split(CHUNK, dim=1)]

    result = {}
    for name in vectors.names:
        per_block = vectors.map(products, vectors.blocks([name]), device=vectors.device)
        result[name] = torch.zeros(len(vectors), len(vectors), dtype=torch.float64)
        for product in (product for block in per_block for product in block):
            result[name] += product.cpu()
        if not bool(result[name].isfinite().all()):
            vectors.check()  # names the file
    return result


def _product(taus_TN: Tensor) -> Tensor:
    """τ τᵀ in float64, a few columns at a time: a copy of all of them is twice as large as they are."""
    product = torch.zeros(len(taus_TN), len(taus_TN), dtype=torch.float64, device=taus_TN.device)
    for columns in taus_TN.split(COLUMNS, dim=1):
        wide = columns.double()
        product += wide @ wide.T
    return product
