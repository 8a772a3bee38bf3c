"""The merge strategy and the values of λ that a config names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from omegaconf import DictConfig, ListConfig

from mergestream.compose import keys
from mergestream.compose.build import build
from mergestream.runtime.errors import UserError
from mergestream.strategies.adjustments import Adjustments
from mergestream.strategies.calibrations.calibration import BoundCalibration, TaskVectorCalibration
from mergestream.strategies.strategy import BoundStrategy


def bound_strategy(cfg: DictConfig) -> BoundStrategy:
    """Return the strategy of the ``strategy`` group with its options, and the adjustments of the merge.

    A scope that is null becomes ``all`` where `cfg` names files to merge, and ``encoder`` for the encoders of a run.
    """
    if "scope" in cfg.strategy and cfg.strategy.scope is None:
        cfg.strategy.scope = "encoder" if cfg.get("base") is None else "all"
    bound: partial[Any] = build(cfg.strategy, cfg.allow_targets, without=("scale",))
    strategy: Any = bound.func
    adjustments = _adjustments(cfg)
    if adjustments.calibration is not None and cfg.strategy.scale != strategy.scale:
        raise UserError(
            f"strategy.scale is λ without a calibration; got strategy.scale={cfg.strategy.scale} with "
            f"calibration={adjustments.calibration.calibration.name}. Write lambda={cfg.strategy.scale}"
        )
    return strategy.bind(bound.keywords, seed=cfg.seed).adjusted(adjustments)


def _adjustments(cfg: DictConfig) -> Adjustments:
    """Return the adjustments that a config names; one without these keys, as of train.py, names none."""

    def listed(key: str, kind: Callable[[Any], Any]) -> list[Any] | None:
        return None if cfg.get(key) is None else [kind(value) for value in cfg[key]]

    return Adjustments(
        calibration=_calibration(cfg),
        weights=listed("weights", float),
        depth=listed("depth", float),
        include=listed("include", str),
        exclude=listed("exclude", str),
    )


def _calibration(cfg: DictConfig) -> BoundCalibration | None:
    node = cfg.get("calibration")
    if node is None or node.get("_target_") is None:
        return None
    bound: partial[Any] = build(node, cfg.allow_targets, without=("scale",))
    if not isinstance(bound.func, TaskVectorCalibration):
        raise UserError(
            "calibration._target_ must be a function that the decorator calibration made; got "
            f"calibration._target_={node._target_}"
        )
    return bound.func.bind(bound.keywords, seed=cfg.seed)


def scales_of(cfg: DictConfig) -> list[float]:
    """Return the values of λ: the given ones, or that of the calibration or the strategy; none if λ is selected."""
    value = cfg["lambda"]
    if value == keys.SELECT:
        return []
    if value is None:
        node = cfg.get("calibration")
        return [float((cfg.strategy if node is None or node.get("_target_") is None else node).scale)]
    return [float(v) for v in value] if isinstance(value, ListConfig) else [float(value)]
