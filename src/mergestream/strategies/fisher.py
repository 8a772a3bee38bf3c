"""Fisher merging: the mean of the task vectors, each parameter weighted by how much its task needs it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mergestream.runtime.rules import require_number
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import Running, State, strategy
from mergestream.strategies.task_vectors import Curvature, Rows, SurveyedVectors


def survey(vectors: SurveyedVectors, *, floor: float = 1e-6) -> dict[str, Any]:
    """Open the Fisher information.

    Args:
        vectors: all task vectors.
        floor: the least that a parameter weighs, so that one without curvature is averaged.

    Raises:
        UserError: if the floor is not positive, or the Fisher information of a task is missing.
    """
    _check(None, floor=floor)
    return {"fishers": vectors.curvature("fisher"), "floor": floor}


def _check(_shapes: object, *, floor: float) -> None:
    require_number("strategy.floor", floor, "positive", lambda x: x > 0)


def _step(state: State, tau: Tensor, *, curvature: Tensor, floor: float) -> State:
    """Add one task to Σ F_t τ_t and Σ F_t of a weight."""
    weight = curvature.clamp(min=floor)
    weighted = weight * tau
    if not state:
        return {"weighted": weighted, "weight": weight}
    return {"weighted": state["weighted"] + weighted, "weight": state["weight"] + weight}


def _finish(state: State, _tasks: int) -> Tensor:
    return state["weighted"] / state["weight"]


@strategy(
    scale=1.0,
    survey=survey,
    streams=True,
    running=Running(step=_step, finish=_finish, check=_check),
    needs="fisher",
    reference=Reference(
        "Merging Models with Fisher-Weighted Averaging", "NeurIPS 2022", "https://arxiv.org/abs/2111.09832"
    ),
)
def fisher(taus: Rows, *, name: str, start: int, fishers: Curvature, floor: float) -> Tensor:
    """τ = Σ_t F_t τ_t / Σ_t F_t with F_t = max(F_t, floor). Matena & Raffel 2022, Eq. 4.

    Args:
        taus: T tensors of one shape.
        name, start: of the block.
        fishers: the diagonal of the Fisher information of each task, from its own images.
        floor: see `survey`.
    """
    state: State = {}
    for tau, weight in zip(taus, fishers.rows(name, start, taus.shape[1:]), strict=True):
        state = _step(state, tau, curvature=weight, floor=floor)
    return _finish(state, len(taus))
