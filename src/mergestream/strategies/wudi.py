"""WUDI: the vector that interferes least with the directions of each task."""

from __future__ import annotations

import torch
from torch import Tensor

from mergestream.runtime.rules import require_number, require_whole
from mergestream.strategies._matrices import on_matrices
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import strategy
from mergestream.strategies.task_vectors import Rows


@strategy(
    scale=1.0,
    streams=True,
    whole=True,
    reference=Reference(
        "Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task Vectors",
        "ICML 2025",
        "https://arxiv.org/abs/2503.08099",
    ),
)
@on_matrices
def wudi(taus: Rows, *, steps: int = 300, lr: float = 1e-5) -> Tensor:
    """τ = argmin_m Σ_t ‖(m − τ_t) τ_tᵀ‖²_F / ‖τ_t‖²_F by Adam from m = Σ_t τ_t; the mean of other weights.

    Cheng et al. 2025, Eq. 8, with their 300 steps of 1e-5. The gradient is 2 (m A − B) with A = Σ_t τ_tᵀτ_t / ‖τ_t‖²
    and B = Σ_t τ_t τ_tᵀτ_t / ‖τ_t‖², so the task vectors are read once.

    Args:
        taus: T tensors of one shape, a whole weight.
        steps: of Adam.
        lr: step size of Adam, in the units of the weights.

    Raises:
        UserError: if an option is out of range.
    """
    require_whole("strategy.steps", steps, 0)
    require_number("strategy.lr", lr, "positive", lambda x: x > 0)
    rows, columns = taus.shape[1:]
    if columns > len(taus) * rows:  # A would be larger than all task vectors together
        return _by_task([tau.clone() for tau in taus], steps, lr)
    merged, B, A = torch.zeros(rows, columns), torch.zeros(rows, columns), torch.zeros(columns, columns)
    for tau in taus:
        square = tau.square().sum()
        if square > 0:
            gram = tau.T @ tau / square
            A, B, merged = A.to(tau.device) + gram, B.to(tau.device) + tau @ gram, merged.to(tau.device) + tau
    optimizer = torch.optim.Adam([merged], lr=lr)
    for _ in range(steps):
        merged.grad = 2 * (merged @ A - B)
        optimizer.step()
    return merged


def _by_task(taus: list[Tensor], steps: int, lr: float) -> Tensor:
    """Compute the result of `wudi` with an explicit gradient, Σ_t 2 (m − τ_t) τ_tᵀ τ_t / ‖τ_t‖²."""
    merged = torch.stack(taus).sum(0)
    changed = [(tau, tau.square().sum()) for tau in taus if bool(tau.any())]
    optimizer = torch.optim.Adam([merged], lr=lr)
    for _ in range(steps):
        terms = [((merged - tau) @ tau.T) @ tau * (2 / square) for tau, square in changed]
        merged.grad = torch.stack(terms).sum(0) if terms else torch.zeros_like(merged)
        optimizer.step()
    return merged
