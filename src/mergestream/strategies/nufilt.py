"""NUFILT: each task filtered away from the directions of the merge so far, with a trained low-rank correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_choice, require_number, require_whole
from mergestream.strategies._draws import draws
from mergestream.strategies._matrices import svd
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import MERGED, Running, State, strategy
from mergestream.strategies.task_vectors import Rows, SurveyedVectors

# Attention and the first matrix of the MLP in the towers of open_clip, transformers and timm.
LAYERS = ("attn.", "c_fc", "fc1")
VARIANTS = ("published", "corrected")
Shapes = Mapping[str, tuple[int, ...]]
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
    options = _Options(variant, layers, null_rank, task_rank, rank, steps, lr, seed)
    if warning := options.check({block.name: block.shape for block in vectors.blocks(vectors.names, whole=True)}):
        vectors.say(warning)
    return options._asdict()


class _Options(NamedTuple):
    """See `survey`."""

    variant: str
    layers: Sequence[str] | None
    null_rank: int
    task_rank: int
    rank: int
    steps: int
    lr: float
    seed: int

    def check(self, shapes: Shapes | None) -> str | None:
        """Check the options, and that they fit the weights if their shapes are known; return a warning or None."""
        require_choice("strategy.variant", self.variant, VARIANTS)
        for key in ("null_rank", "task_rank", "rank", "steps"):
            require_whole(f"strategy.{key}", getattr(self, key), 0)
        require_number("strategy.lr", self.lr, "positive", lambda x: x > 0)
        layers = self.layers
        listed = isinstance(layers, Sequence) and not isinstance(layers, str)
        if layers is not None and not (listed and all(isinstance(part, str) for part in layers)):
            raise UserError(f"strategy.layers must be a list of parts of names; got strategy.layers={layers}")
        if shapes is None:
            return None
        chosen = {name: shape for name, shape in shapes.items() if self.merges(name, shape)}
        if not chosen:
            matrices = [name for name, shape in shapes.items() if _is_matrix(shape)]
            raise UserError(
                f"strategy.layers must name a matrix; none of {len(matrices)}, such as "
                f"{next(iter(matrices), 'none')}, has a part of its name in strategy.layers={list(layers or LAYERS)}. "
                "Write strategy.layers=[PART,PART]."
            )
        for name, shape in chosen.items():
            self._require_ranks(name, shape)
        full = next((name for name, shape in chosen.items() if shape[1] == self.null_rank), None)
        return full and (
            f"strategy.null_rank={self.null_rank} protects every input of {full}, so little of a task is merged; "
            f"write a smaller one, such as strategy.null_rank={max(1, self.null_rank // 6)}"
        )

    def merges(self, name: str, shape: Sequence[int]) -> bool:
        """Return whether a weight is merged: a matrix with one of `layers` in its name."""
        return _is_matrix(shape) and any(part in name for part in (LAYERS if self.layers is None else self.layers))

    def _require_ranks(self, name: str, shape: Sequence[int]) -> None:
        for key in ("null_rank", "task_rank", "rank"):
            value, most = getattr(self, key), min(shape) if key == "task_rank" else shape[1]
            if value > most:
                raise UserError(
                    f"strategy.{key} must be at most {most}, for {name} of shape {list(shape)}; "
                    f"got strategy.{key}={value}. Write strategy.{key}={most} or less."
                )


def _is_matrix(shape: Sequence[int]) -> bool:
    return len(shape) == 2 and min(shape) > 0


def _check(shapes: Shapes | None, **options: Any) -> str | None:
    return _Options(**options).check(shapes)


def _step(state: State, tau: Tensor, *, name: str, task: int, **options: Any) -> State:
    """Return M_t of a weight from M_{t−1}; see `nufilt`."""
    of = _Options(**options)
    if not of.merges(name, tau.shape):
        return {MERGED: torch.zeros_like(tau)}
    tau, columns = tau.double(), tau.shape[1]
    merged = state[MERGED].double() if state else torch.zeros_like(tau)
    V = _leading(merged, of.null_rank)
    if not V.shape[1] and of.variant == "published":
        V = torch.eye(columns, dtype=tau.dtype, device=tau.device)[:, : of.null_rank]
    filtered = merged + tau - (tau @ V) @ V.T
    if task and of.steps:
        A = _normal(of.rank, columns, of.seed, name, task).to(tau.device)
        filtered += tau @ _correction(tau, merged, V, _leading(tau, of.task_rank), A, of.steps, of.lr)
    return {MERGED: filtered.float()}


@strategy(
    scale=1.0,
    survey=survey,
    streams=True,
    whole=True,
    running=Running(step=_step, check=_check),
    reference=Reference(
        "Null-Space Filtering for Data-Free Continual Model Merging: Preserving Stability, Promoting Plasticity",
        "ICLR 2026",
        "https://arxiv.org/abs/2509.21413",
    ),
)
def nufilt(taus: Rows, *, name: str, **options: Any) -> Tensor:
    """M_0 = 0, M_t = M_{t−1} + τ_t (I − V Vᵀ + B A), τ = M_T, on the chosen matrices; zero on all other weights.

    V are the leading right singular vectors of M_{t−1}. From t = 2 on, Adam trains A and B, which start as a normal
    draw and as zero, on ‖(τ_t − M_t) V_τ‖² + ‖(M_{t−1} − M_t) V‖² with V_τ the leading right singular vectors of τ_t.
    Qiu et al. 2026, and their code. There M_0 has the first unit vectors as V, so the first task loses its first
    `null_rank` columns: ``published``. With ``corrected`` a zero matrix has no such vectors, so M_1 = τ_1.

    The code treats query, key and value as three matrices; where a model stacks them, they are one here.

    Args:
        taus: T tensors of one shape, a whole weight.
        name: of the weight; a key of the draws.
        options: see `survey`.
    """
    state: State = {}
    for task, tau in enumerate(taus):
        state = _step(state, tau, name=name, task=task, **options)
    return state[MERGED]


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
