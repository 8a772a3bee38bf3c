"""Which parts of a config decide a result, and hashes of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# Parts of a config that do not change the result: where it runs, where it is written, how it is watched.
NEUTRAL: tuple[str, ...] = ("root", "tag", "devices", "accelerator", "logger", "data", "dataset.root")
NEUTRAL += ("dataset.download", "strategy", "lambda", "merge_every_task", "keep_tasks")
NEUTRAL += ("calibration", "weights", "depth", "include", "exclude")
NEUTRAL += ("checkpoint", "launcher", "repair", "watch", "allow_targets")
NEUTRAL += ("curvature.fisher", "curvature.gram", "curvature.classes")
NEUTRAL += ("activation_checkpointing", "threads", "evaluate")

# Keys that came later, with the value that means what every run did before: there, they do not count.
FORMER = {"eval_precision": "32-true", "accumulate": 1, "compile": False}
FORMER |= {"curvature.samples": 256}
FORMER |= {"method.average": None, "method.average_every": 1, "method.average_decay": 0.99}
FORMER |= {"model.adapter": None, "model.adapter_rank": 8, "model.adapter_alpha": 16}
FORMER |= {"model.adapter_targets": ["in_proj", "c_fc", "c_proj"]}
FORMER |= {"dataset.layout": "classes", "stream.layout": "tasks", "dataset.mtil": False}

# How every model preprocessed images before base.json recorded it, besides the mean and std of its tag.
FORMER_PREPROCESSING = {"interpolation": "bicubic", "resize_mode": "shortest", "quick_gelu": False}
FORMER_PREPROCESSING |= {"augment": "pil", "short_side": None}


def deciding(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys and values of a resolved config that decide the result."""
    flat = {k: value for k, value in _flatten(dict(config)).items() if not (k in FORMER and FORMER[k] == value)}
    neutral = [n for n in NEUTRAL if flat.get("method.start") != "merged" or n not in ("strategy", "lambda")]
    return {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{n}.") for n in neutral)}


def config_hash(config: Mapping[str, Any], preprocessing: Mapping[str, Any] | None = None) -> str:
    """Return a short hash of the parts of a resolved config that decide the result.

    Args:
        config: the config.
        preprocessing: of the model; it counts where it differs from `FORMER_PREPROCESSING`.
    """
    departed = {f"preprocessing.{key}": value for key, value in departures(preprocessing or {}).items()}
    return equal_hash({**deciding(config), **departed})[:16]


def departures(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    """Return what differs from `FORMER_PREPROCESSING`."""
    return {key: value for key, value in preprocessing.items() if value != FORMER_PREPROCESSING.get(key, value)}


def content_hash(value: Any) -> str:
    """Return the sha256 of a value that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def equal_hash(value: Any) -> str:
    """Return a `content_hash` that treats 1 and 1.0 as equal, and null like a missing key."""

    def alike(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: alike(part) for key, part in item.items() if part is not None}
        if isinstance(item, list):
            return [alike(part) for part in item]
        return int(item) if isinstance(item, bool) or (isinstance(item, float) and item.is_integer()) else item

    return content_hash(alike(value))


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
