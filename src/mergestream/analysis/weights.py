"""Sums over the weights of an encoder, and where in the network each weight is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from mergestream.merging.vectors import Block

# In transformer.resblocks.3.ln_1.bias, layer2.0.conv1.weight and stages.1.blocks.0.norm.weight: the name of the block
# and the rest.
BLOCK_NAME = re.compile(r"((?:.*?\.)?\d+(?:\.(?:blocks\.)?\d+)?)\.(.+)$")


def blocks_and_kinds(names: Iterable[str]) -> dict[str, tuple[int | None, str]]:
    """Map each weight to its block and its kind.

    transformer.resblocks.3.attn.out_proj.weight is (3, "attn.out_proj.weight"). Blocks are counted from 0 through the
    whole network, also where it has several stages. A weight outside the blocks has None.
    """
    matches = {name: BLOCK_NAME.match(name) for name in names}
    blocks = {match[1] for match in matches.values() if match}
    order = sorted(blocks, key=lambda block: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", block)])
    return {name: (order.index(match[1]), match[2]) if match else (None, name) for name, match in matches.items()}


def sum_by_weight(blocks: Sequence[Block], results: Sequence[np.ndarray]) -> dict[str, tuple[int, np.ndarray]]:
    """Map each weight to its number of parameters and the sum of the results of its blocks."""
    sums: dict[str, tuple[int, np.ndarray]] = {}
    for block, result in zip(blocks, results, strict=True):
        size, total = sums.get(block.name, (0, np.zeros_like(result)))
        sums[block.name] = size + block.size, total + result
    return sums


def magmax_tasks(taus: Tensor) -> Tensor:
    """Return the task whose value MagMax takes for each parameter.

    Equal magnitudes go to the later task.

    Args:
        taus: task vectors [T, n].

    Returns:
        Tasks [n], counted from 0; −1 where no task changes the parameter.
    """
    magnitudes = taus.abs()
    last = len(taus) - 1 - magnitudes.flip(0).argmax(0)
    return torch.where(magnitudes.amax(0) > 0, last, -1)


def count_values(values: Tensor, bins: int) -> np.ndarray:
    """Return how often each of 0 … bins − 1 occurs in `values`; negative values are ignored."""
    return torch.bincount(values[values >= 0].flatten(), minlength=bins).numpy()
