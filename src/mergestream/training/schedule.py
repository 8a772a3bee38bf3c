"""The learning rate of each optimizer step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, base_lr: float, warmup_steps: int, total_steps: int) -> float:
    """Return the learning rate of optimizer step `step`, from 0: linear warm-up, then half a cosine down to 0.

    lr = base · (step + 1) / warmup                                        for step < warmup
    lr = base · ½ (1 + cos(π · (step − warmup) / (total − warmup)))        otherwise

    A warm-up that is longer than the training never reaches `base_lr`, as in the published schedule of
    Marczak et al. 2024.

    Args:
        step: number of the step, from 0.
        base_lr: the highest rate.
        warmup_steps, total_steps: in optimizer steps.
    """
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    angle = math.pi * (step - warmup_steps) / max(1, total_steps - warmup_steps)
    return 0.5 * (1 + math.cos(angle)) * base_lr
