"""NUFILT: each task filtered away from the directions of the merge so far, with a trained low-rank correction."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_choice, require_number, require_whole
from mergestream.strategies._draws import draws
from mergestream.strategies._folds import total
from mergestream.strategies._matrices import svd
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Rows, SurveyedVectors

# Attention and the first matrix of the MLP in the towers of open_clip, transformers and timm.
LAYERS = ("attn.", "c_fc", "fc1")
VARIANTS = ("published", "corrected")
DEVIATION = 0.02  # of the elements that A starts with


def survey(
    vectors: SurveyedVectors,
    *,
    variant: str = "published",
    layers: Sequence[str] | None = None,
    null_rank: int = 128,
    task_rank: int = 8,
    rank: int = 64,
    steps: int = 50,
    lr: float = 1e-3,
    seed: int = 5,
) -> dict[str, Any]:
    """Check the options, and choose the weights that are merged.

    Args:
        vectors: all task vectors.
        variant: ``published`` or ``corrected``, see `nufilt`.
        layers: parts of names; a weight that is a matrix is merged if its name has one of them, and an empty part names
            all. None stands for attention and the first matrix of the MLP.
        null_rank: directions of the merge that a new task leaves alone, the columns of V.
        task_rank: directions of the new task that the correction restores, the columns of V_τ.
        rank: of the correction BA.
        steps: of Adam.
        lr: step size of Adam.
        seed: a key of the draws that A starts from.

    Raises:
        UserError: if an option is out of range, a rank is larger than a weight, or no weight is chosen.
    """
    require_choice("strategy.variant", variant, VARIANTS)
    ranks = {"null_rank": null_rank, "task_rank": task_rank, "rank": rank}
    for key, value in {**ranks, "steps": steps}.items():
        require_whole(f"strategy.{key}", value, 0)
    require_number("strategy.lr", lr, "positive", lambda x: x > 0)
    chosen = _chosen(vectors, LAYERS if layers is None else layers)
    for name, shape in chosen.items():
        for key, value in ranks.items():
            most = min(shape) if key == "task_rank" else shape[1]
            if value > most:
                raise UserError(
                    f"strategy.{key} must be at most {most}, for {name} of shape {list(shape)}; "
                    f"got strategy.{key}={value}. Write strategy.{key}={most} or less."
                )
    if full := [name for name, shape in chosen.items() if null_rank == shape[1]]:
        vectors.say(
            f"strategy.null_rank={null_rank} protects every input of {full[0]}, so little of a task is merged; "
            f"write a smaller one, such as strategy.null_rank={max(1, null_rank // 6)}"
        )
    return {"chosen": set(chosen), **ranks, "variant": variant, "steps": steps, "lr": lr, "seed": seed}


def _chosen(vectors: SurveyedVectors, layers: Sequence[str]) -> Mapping[str, tuple[int, ...]]:
    """Return name → shape of the matrices whose names have one of `layers`."""
    listed = isinstance(layers, Sequence) and not isinstance(layers, str)
    if not listed or not all(isinstance(part, str) for part in layers):
        raise UserError(f"strategy.layers must be a list of parts of names; got strategy.layers={layers}")
    shapes = {block.name: block.shape for block in vectors.blocks(vectors.names, whole=True)}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2 and min(shape) > 0}
    chosen = {name: shape for name, shape in matrices.items() if any(part in name for part in layers)}
    if not chosen:
        raise UserError(
            f"strategy.layers must name a matrix; none of {len(matrices)}, such as {next(iter(matrices), 'none')}, "
            f"has a part of its name in strategy.layers={list(layers)}. Write strategy.layers=[PART,PART]."
        )
    return chosen


@strategy(
    scale=1.0,
    survey=survey,
    streams=True,
    whole=True,
    reference=Reference(
        "Null-Space Filtering for Data-Free Continual Model Merging: Preserving Stability, Promoting Plasticity",
        "ICLR 2026",
        "https://arxiv.org/abs/2509.21413",
    ),
)
def nufilt(
    taus: Rows,
    *,
    name: str,
    chosen: Collection[str],
    variant: str,
    null_rank: int,
    task_rank: int,
    rank: int,
    steps: int,
    lr: float,
    seed: int,
) -> Tensor:
    """M_0 = 0, M_t = M_{t−1} + τ_t (I − V Vᵀ + B A), τ = M_T, on the chosen matrices; zero on all other weights.

    V are the leading right singular vectors of M_{t−1}. From t = 2 on, Adam trains A and B, which start as a normal
    draw and as zero, on ‖(τ_t − M_t) V_τ‖² + ‖(M_{t−1} − M_t) V‖² with V_τ the leading right singular vectors of τ_t.
    Qiu et al. 2026, and their code. There M_0 has the first unit vectors as V, so the first task loses its first
    `null_rank` columns: ``published``. With ``corrected`` a zero matrix has no such vectors, so M_1 = τ_1.

    The code treats query, key and value as three matrices; where a model stacks them, they are one here.

    Args:
        taus: T tensors of one shape, a whole weight.
        name: of the weight; a key of the draws.
        chosen: the names that are merged.
        variant, null_rank, task_rank, rank, steps, lr, seed: see `survey`.
    """
    if name not in chosen:
        return torch.zeros_like(total(taus))  # reads all tasks, whose hashes the record of the merge holds
    rows, columns = taus.shape[1:]
    merged = torch.zeros(rows, columns, dtype=torch.float64)
    for task, row in enumerate(taus):
        tau, merged = row.double(), merged.to(row.device)
        V = _leading(merged, null_rank)
        if not V.shape[1] and variant == "published":
            V = torch.eye(columns, dtype=tau.dtype, device=tau.device)[:, :null_rank]
        filtered = merged + tau - (tau @ V) @ V.T
        if task and steps:
            A = _normal(rank, columns, seed, name, task).to(tau.device)
            filtered += tau @ _correction(tau, merged, V, _leading(tau, task_rank), A, steps, lr)
        merged = filtered
    return merged.float()


def _leading(matrix: Tensor, count: int) -> Tensor:
    """Return up to `count` leading right singular vectors, float64 [n, k]; none of a singular value that is zero."""
    return svd(matrix.float())[2][:count].T.double()


def _normal(rows: int, columns: int, *key: int | str) -> Tensor:
    """Return draws from N(0, 0.02²) that `key` determines, float64 [rows, columns]."""
    uniform = (draws(0, rows * columns, *key).astype(np.float64) + 0.5) / 2**32
    return torch.special.ndtri(torch.from_numpy(uniform)).mul_(DEVIATION).view(rows, columns)


def _correction(tau: Tensor, merged: Tensor, V: Tensor, V_task: Tensor, A: Tensor, steps: int, lr: float) -> Tensor:
    """Return B A, [n, n], after Adam from B = 0.

    With R = τ_t (V Vᵀ − B A) − M_{t−1}, the loss is ‖R V_τ‖² + ‖τ_t B A V‖², since (I − V Vᵀ) V = 0. The gradients need
    only τᵀτ and thin products.
    """
    gram = tau.T @ tau
    target = tau.T @ ((tau @ V) @ (V.T @ V_task) - merged @ V_task)  # τᵀ (R + τ B A) V_τ
    B = torch.zeros(A.shape[1], A.shape[0], dtype=A.dtype, device=A.device)
    optimizer = torch.optim.Adam([A, B], lr=lr)
    for _ in range(steps):
        AT, AV = A @ V_task, A @ V
        left, right = gram @ (B @ AT) - target, gram @ (B @ AV)
        A.grad, B.grad = 2 * B.T @ (left @ V_task.T + right @ V.T), 2 * (left @ AT.T + right @ AV.T)
        optimizer.step()
    return B @ A
