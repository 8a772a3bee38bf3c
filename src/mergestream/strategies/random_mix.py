"""RandMix: for each parameter, the value of a random task."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mergestream.strategies._draws import draws
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy


@strategy(
    scale=1.0,
    reference=Reference(
        "MagMax: Leveraging Model Merging for Seamless Continual Learning",
        "ECCV 2024",
        "https://arxiv.org/abs/2407.06322",
    ),
)
def random_mix(taus: Tensor, *, name: str, start: int = 0, seed: int = 5) -> Tensor:
    """τ_p = τ_{u,p}, with u drawn uniformly from the tasks for each parameter. Marczak et al. 2024, section 4.1.

    Args:
        taus: the stack of a block, [T, …].
        name: the weight; a key of the draws.
        start: position of the block in the weight; selects the draws.
        seed: a key of the draws.
    """
    # 32 bits scaled to 0…T−1: bias below T / 2³².
    index = draws(start, taus[0].numel(), seed, name).astype(np.uint64) * np.uint64(len(taus)) >> np.uint64(32)
    chosen = torch.from_numpy(index.astype(np.int64)).to(taus.device)
    return taus.gather(0, chosen.view(1, *taus.shape[1:])).squeeze(0)
