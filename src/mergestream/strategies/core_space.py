"""Core Space: merge low-rank updates as small matrices, in the bases that all tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mergestream.runtime.rules import require_choice, require_fraction, require_whole
from mergestream.strategies._folds import elected, trimmed_to_share
from mergestream.strategies._matrices import on_matrices, svd
from mergestream.strategies.average import average
from mergestream.strategies.iso_c import iso_c
from mergestream.strategies.magmax import magmax
from mergestream.strategies.reference import Reference
from mergestream.strategies.strategy import Strategy, strategy
from mergestream.strategies.task_arithmetic import task_arithmetic
from mergestream.strategies.task_vectors import Rows, SurveyedVectors
from mergestream.strategies.tsv import tsv

Factors = Sequence[tuple[Tensor, Tensor]]  # B_t [m, r_t] and A_t [r_t, n], with τ_t = B_t A_t

TIES = "ties"
RULES: Mapping[str, Strategy] = {rule.name: rule for rule in (average, task_arithmetic, magmax, tsv, iso_c)}


def survey(
    vectors: SurveyedVectors, *, rule: str = "iso_c", density: float = 0.2, rank: int | None = None
) -> dict[str, Any]:
    """Check the options, and return them with what gives the factors of a weight.

    Args:
        vectors: all task vectors.
        rule: how the core matrices are merged: ``average``, ``task_arithmetic``, ``magmax``, ``ties``, ``tsv`` or
            ``iso_c``, as the strategies of these names merge weights.
        density: of ``ties``: share of each core matrix that survives, in (0, 1].
        rank: singular values of each task vector that are kept where it is not that of an adapter; None is all.

    Raises:
        UserError: if an option breaks its rule, or `rank` is above that of every matrix.
    """
    require_choice("strategy.rule", rule, sorted([*RULES, TIES]))
    require_fraction("strategy.density", density)
    if rank is not None:
        shapes = [block.shape for block in vectors.blocks(vectors.names, whole=True)]
        require_whole("strategy.rank", rank, 1, max((min(s) for s in shapes if len(s) == 2), default=None))
    return {"factors": vectors.factors, "rule": rule, "density": density, "rank": rank}


@strategy(
    scale=1.0,
    survey=survey,
    streams=True,
    whole=True,
    reference=Reference(
        "Accurate and Efficient Low-Rank Model Merging in Core Space",
        "NeurIPS 2025",
        "https://arxiv.org/abs/2509.17786",
    ),
)
@on_matrices
def core_space(
    taus: Rows,
    *,
    name: str,
    factors: Callable[[str], Factors | None],
    rule: str,
    density: float,
    rank: int | None,
) -> Tensor:
    """τ = U_B · rule(M_1, …, M_T) · V_Aᵀ, with M_t = U_Bᵀ τ_t V_A.

    U_B are the left singular vectors of [B_1 … B_T], V_A the right ones of [A_1; …; A_T], where τ_t = B_t A_t. The
    sides of M_t are at most Σ_t r_t. Weights that are not matrices are averaged. Panariello et al. 2025, section 4.
    The paper chooses λ on validation data; the default is λ = 1.

    A task vector that is not that of an adapter is factored by its own singular value decomposition U S Vᵀ into
    B = U √S and A = √S Vᵀ. Without a `rank`, the bases are then those of the whole space as soon as the ranks add up
    to it.

    Args:
        taus: T tensors of one shape, a whole weight.
        name: of the weight.
        factors: returns the B_t and A_t of a weight; None if a task is no adapter.
        rule, density, rank: see `survey`.
    """
    pairs = factors(name) or [_balanced(tau, rank) for tau in taus]
    left = svd(torch.cat([B for B, _ in pairs], 1))[0]
    right = svd(torch.cat([A for _, A in pairs]))[2].T
    if not min(left.shape[1], right.shape[1]):
        return torch.zeros(taus.shape[1:], device=left.device)
    cores = torch.stack([left.T @ tau @ right for tau in taus])
    return left @ _merged(cores, rule, density) @ right.T


def _merged(cores: Tensor, rule: str, density: float) -> Tensor:
    if rule == TIES:
        return elected(trimmed_to_share(cores, density))[0]
    return RULES[rule](cores)


def _balanced(tau: Tensor, rank: int | None) -> tuple[Tensor, Tensor]:
    """Return U √S and √S Vᵀ of a matrix U S Vᵀ, cut to a rank."""
    U, S, Vt = (part.clone() for part in svd(tau))
    root = S[:rank].sqrt()
    return U[:, :rank] * root, root[:, None] * Vt[:rank]
