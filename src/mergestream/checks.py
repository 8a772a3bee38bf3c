"""What a config must satisfy before data loads or a device is touched; each check names its key."""

from __future__ import annotations

import math
from numbers import Real
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mergestream.errors import UserError

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_stream(cfg: DictConfig) -> None:
    """Keys that train and merge share.

    Raises:
        UserError: on the first key that breaks its rule.
    """
    _whole(cfg, "tasks", 1)
    _whole(cfg, "seed", 0)
    _whole(cfg, "batch_size", 1)
    _whole(cfg, "data.num_workers", 0)
    _number(cfg, "stream.validation", "at least 0 and below 1", lambda x: 0 <= x < 1)
    for key in ("tag", "dataset.name", "stream.name", "model.name", "method.id"):
        value = _get(cfg, key)
        if value is not None and (not str(value) or set(str(value)) & set("/\\\0") or str(value).startswith(".")):
            raise UserError(f"{key} becomes a folder name, without / and not starting with a dot; got {key}={value}")
    root = Path(str(cfg.root))
    if root.exists() and not root.is_dir():
        raise UserError(f"root must be a folder; root={cfg.root} is a file")


def check_training(cfg: DictConfig) -> None:
    """Keys of train.yaml.

    Raises:
        UserError: on the first key that breaks its rule.
    """
    check_stream(cfg)
    _whole(cfg, "epochs", 1)
    _number(cfg, "gradient_clip", "positive", lambda x: x > 0)
    _number(cfg, "optimizer.lr", "positive", lambda x: x > 0)
    _number(cfg, "optimizer.weight_decay", "at least 0", lambda x: x >= 0)
    if cfg.precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}; got precision={cfg.precision}")
    warmup = cfg.schedule.warmup
    if isinstance(warmup, bool) or not (
        (isinstance(warmup, int) and warmup >= 0) or (isinstance(warmup, float) and 0 <= warmup <= 1)
    ):
        raise UserError(
            "schedule.warmup must be a number of steps (500) or a fraction of all steps between 0.0 and 1.0; "
            f"got schedule.warmup={warmup}"
        )


def check_scale(scale: Any) -> None:
    """λ is any finite number or null; a negative one subtracts the task vector.

    Raises:
        UserError: otherwise.
    """
    if scale is not None and not _finite(scale):
        raise UserError(f"lambda must be a finite number, or null for the strategy's own; got lambda={scale}")


def _whole(cfg: DictConfig, key: str, least: int) -> None:
    value = _get(cfg, key)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise UserError(f"{key} must be a whole number, {least} or more; got {key}={value}")


def _number(cfg: DictConfig, key: str, rule: str, holds) -> None:
    value = _get(cfg, key)
    if not _finite(value) or not holds(value):
        raise UserError(f"{key} must be a number, {rule}; got {key}={value}")


def _finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _get(cfg: DictConfig, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part) if node is not None else None
    return node
