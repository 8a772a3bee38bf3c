"""DOP: each task merged so that it moves neither the past nor itself along the directions that either uses."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mergestream.runtime.rules import require_choice, require_fraction, require_number, require_whole
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import Running, strategy
from mergestream.strategies.task_vectors import Rows

SOLVERS = ("mgda", "adam", "closed")
VARIANTS = ("published", "corrected")
NULL = 1e-12  # a curvature below this share of the largest is rounding: the losses do not determine the direction


@strategy(
    scale=1.0,
    streams=True,
    whole=True,
    running=Running(),
    reference=Reference(
        "Continual Model Merging without Data: Dual Projections for Balancing Stability and Plasticity",
        "NeurIPS 2025",
        "https://openreview.net/forum?id=zD5cUX67b9",
    ),
)
def dop(
    taus: Rows,
    *,
    solver: str = "mgda",
    variant: str = "published",
    alpha: float = 0.8,
    energy: float = 0.99999,
    steps: int = 200,
    lr: float = 1e-4,
    decay: float = 0.999,
) -> Tensor:
    """M_1 = τ_1, M_t = argmin_M α L(M, M_{t−1}) + (1 − α) L(M, τ_t) from (M_{t−1} + τ_t) / 2, τ = M_T.

    L(M, X) = ‖S Uᵀ (M − X)‖² + ‖(M − X) V S‖² with U S Vᵀ the leading part of the singular value decomposition of X.
    Weights that are not matrices are pairwise means. Yang et al. 2025, and their code.

    Args:
        taus: T tensors of one shape, a whole weight, in the order of the tasks.
        solver: ``mgda``, as published: Adam, and in each step α moves to the weight of the multiple-gradient descent
            algorithm by a moving average. ``adam``: Adam with a fixed α. ``closed``: the exact minimum for a fixed α,
            from the Sylvester equation; what the losses do not determine stays as it starts.
        variant: ``published`` weighs by S and cuts before the singular value that reaches the share `energy`, as the
            code does; ``corrected`` weighs by S^½, as the paper does, and keeps that value.
        alpha: weight of the past, in [0, 1].
        energy: share of the sum of the singular values that is kept, in (0, 1].
        steps, lr: of Adam; `lr` is in the units of the weights.
        decay: of the moving average of α, in [0, 1).

    Raises:
        UserError: if an option is out of range.
    """
    require_choice("strategy.solver", solver, SOLVERS)
    require_choice("strategy.variant", variant, VARIANTS)
    require_number("strategy.alpha", alpha, "between 0 and 1", lambda x: 0 <= x <= 1)
    require_fraction("strategy.energy", energy)
    require_whole("strategy.steps", steps, 0)
    require_number("strategy.lr", lr, "positive", lambda x: x > 0)
    require_fraction("strategy.decay", decay, zero=True)
    rows = iter(taus)
    merged = next(rows).clone()
    for tau in rows:
        start = (merged + tau) / 2
        if merged.dim() == 2 and merged.numel():
            sides = [side(x, energy, variant) for x in (merged, tau)]
            if solver == "closed":
                start = _closed(start, sides, alpha)
            else:
                start = _descended(start, sides, alpha, steps, lr, decay if solver == "mgda" else None)
        merged = start
    return merged


class Side(NamedTuple):
    """L(M, X) = tr (M − X)ᵀ left (M − X) + tr (M − X) right (M − X)ᵀ, in float64.

    Args:
        point: X, [m, n].
        left: U S² Uᵀ, [m, m].
        right: V S² Vᵀ, [n, n].
    """

    point: Tensor
    left: Tensor
    right: Tensor

    def half_gradient(self, merged: Tensor) -> Tensor:
        """Return left (M − X) + (M − X) right, half of the gradient of L."""
        moved = merged - self.point
        return self.left @ moved + moved @ self.right


def side(point: Tensor, energy: float, variant: str) -> Side:
    """Return the loss of moving away from `point`, [m, n]; see `dop` for the options."""
    point = point.double()
    U, S, Vt = torch.linalg.svd(point, full_matrices=False)
    kept = int((S.cumsum(0) < energy * S.sum()).sum())
    if variant == "corrected":
        kept += 1
    U, Vt = U[:, :kept], Vt[:kept]
    weights = S[:kept].square() if variant == "published" else S[:kept]
    return Side(point, (U * weights) @ U.T, (Vt.T * weights) @ Vt)


def _closed(start: Tensor, sides: list[Side], alpha: float) -> Tensor:
    """Return the minimum of α L_0 + (1 − α) L_1 that is nearest to `start`.

    The gradient is zero where A D + D B = −C, with D = M − `start`, A and B the weighted sums of `left` and of `right`,
    and C half of the gradient at `start`. In the eigenvectors of A and B, this is a division by sums of eigenvalues.
    """
    past, new = sides
    half = alpha * past.half_gradient(start.double()) + (1 - alpha) * new.half_gradient(start.double())
    a, Q = torch.linalg.eigh(alpha * past.left + (1 - alpha) * new.left)
    b, Z = torch.linalg.eigh(alpha * past.right + (1 - alpha) * new.right)
    curvature = a.unsqueeze(1) + b
    step = torch.where(curvature > NULL * curvature.max(), (Q.T @ half @ Z) / curvature, 0.0)
    return (start.double() - Q @ step @ Z.T).float()


def _descended(start: Tensor, sides: list[Side], alpha: float, steps: int, lr: float, decay: float | None) -> Tensor:
    """Return M after Adam from `start`, in float32; `decay` is that of α, or None if α is fixed."""
    merged = start.clone()
    past, new = (Side(*(part.float() for part in s)) for s in sides)
    optimizer = torch.optim.Adam([merged], lr=lr)
    for _ in range(steps):
        halves = past.half_gradient(merged), new.half_gradient(merged)
        if decay is not None:
            losses = [float(((merged - s.point) * half).sum()) for s, half in zip((past, new), halves, strict=True)]
            if min(losses) > 0:  # there is nothing to balance if one side is at its minimum
                alpha = decay * alpha + (1 - decay) * _least_norm(*halves, *losses)
        merged.grad = 2 * (alpha * halves[0] + (1 - alpha) * halves[1])
        optimizer.step()
    return merged


def _least_norm(first: Tensor, second: Tensor, loss_1: float, loss_2: float) -> float:
    """Return γ for the shortest γ g_1 / L_1 + (1 − γ) g_2 / L_2. Sener & Koltun 2018, with the limits of their code."""
    g_11 = float((first * first).sum()) / loss_1**2
    g_12 = float((first * second).sum()) / loss_1 / loss_2
    g_22 = float((second * second).sum()) / loss_2**2
    if g_12 >= g_11:
        return 0.999
    if g_12 >= g_22:
        return 0.001
    return (g_22 - g_12) / (g_11 + g_22 - 2 * g_12)
