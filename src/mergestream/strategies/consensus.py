"""Consensus TA: the sum of the task vectors, without the parameters that serve too few tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import is_number, require_whole
from mergestream.strategies._folds import summed
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import SurveyedVectors


def survey(vectors: SurveyedVectors, *, threshold: float | Sequence[float] = 0.4, tasks: int = 2) -> dict[str, Any]:
    """Give each task its threshold.

    Args:
        vectors: all task vectors.
        threshold: λ_t, one number for all tasks or a list of T; a larger one finds fewer parameters of a task. The
            paper chooses each from 0.2, 0.3, 0.4, 0.5 and 0.6 on validation data; the default is their middle.
        tasks: how many tasks must use a parameter that is kept; all of them where there are fewer.

    Raises:
        UserError: if an option is out of range, or the list has another length than T.
    """
    require_whole("strategy.tasks", tasks, 0)
    values: Any = [threshold] * len(vectors) if is_number(threshold) else threshold
    listed = isinstance(values, Sequence) and not isinstance(values, str)
    if not listed or len(values) != len(vectors) or not all(is_number(value) and value >= 0 for value in values):
        raise UserError(
            f"strategy.threshold must be a number, 0 or more, or a list of {len(vectors)}, one for each task; "
            f"got strategy.threshold={threshold}"
        )
    return {"thresholds": list(values), "tasks": min(tasks, len(vectors))}


@strategy(
    scale=0.3,
    survey=survey,
    reference=Reference(
        "Localizing Task Information for Improved Model Merging and Compression",
        "ICML 2024",
        "https://arxiv.org/abs/2405.07813",
    ),
)
def consensus(taus: Tensor, *, thresholds: Sequence[float], tasks: int) -> Tensor:
    """τ = m ∘ Σ_t τ_t, where m keeps a parameter that at least `tasks` tasks use, and drops all others.

    Task t uses a parameter if |τ_t| ≥ λ_t |Σ_s τ_s − τ_t|, its TALL mask. Wang et al. 2024, combined with task
    arithmetic, whose λ is the default. (Their code has > for ≥, and drops everything where there are fewer tasks.)

    Args:
        taus: the stack [T, n].
        thresholds: λ_1 … λ_T.
        tasks: see `survey`, at most T.
    """
    merged = summed(taus)
    uses = torch.zeros_like(merged)
    for tau, threshold in zip(taus, thresholds, strict=True):
        uses += tau.abs() >= (merged - tau).abs().mul_(threshold)
    return merged.mul_(uses >= tasks)
