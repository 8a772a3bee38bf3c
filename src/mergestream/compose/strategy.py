"""The merge strategy and the values of λ that a config names."""

from __future__ import annotations

from functools import partial
from typing import Any

from omegaconf import DictConfig, ListConfig

from mergestream.compose import checks
from mergestream.compose.build import build
from mergestream.strategies.strategy import BoundStrategy


def bound_strategy(cfg: DictConfig) -> BoundStrategy:
    """Return the strategy of the ``strategy`` group with its options.

    A scope that is null becomes ``all`` where `cfg` names files to merge, and ``encoder`` for the encoders of a run.
    """
    if "scope" in cfg.strategy and cfg.strategy.scope is None:
        cfg.strategy.scope = "encoder" if cfg.get("base") is None else "all"
    bound: partial[Any] = build(cfg.strategy, cfg.allow_targets, without=("scale",))
    strategy: Any = bound.func
    return strategy.bind(bound.keywords, seed=cfg.seed)


def scales_of(cfg: DictConfig) -> list[float]:
    """Return the values of λ: the given ones, or the strategy's own; none if λ is selected."""
    value = cfg["lambda"]
    if value == checks.SELECT:
        return []
    if value is None:
        return [float(cfg.strategy.scale)]
    return [float(v) for v in value] if isinstance(value, ListConfig) else [float(value)]
