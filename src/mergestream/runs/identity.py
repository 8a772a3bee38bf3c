"""What of a config decides a result, and which words name the run that has it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

# Parts of a config that leave the result as it is: where it runs, where it is written, how it is watched.
NEUTRAL: tuple[str, ...] = ("root", "tag", "devices", "accelerator", "logger", "data", "dataset.root")
NEUTRAL += ("dataset.download", "strategy", "lambda", "merge_every_task", "keep_tasks")
NEUTRAL += ("checkpoint", "launcher", "repair", "allow_targets")
# What `Run.of` says itself of a command.
NAMING_KEYS = ("dataset", "tasks", "method", "model", "seed", "stream", "tag", "root", "experiment", "repair")


def deciding(config: Mapping[str, Any] | DictConfig) -> dict[str, Any]:
    """Dotted keys and values of a config, without what leaves the result as it is."""
    plain = OmegaConf.to_container(config, resolve=True) if isinstance(config, DictConfig) else dict(config)
    flat = _flatten(plain)
    return {key: value for key, value in flat.items() if not any(f"{key}.".startswith(f"{n}.") for n in NEUTRAL)}


def config_hash(cfg: DictConfig) -> str:
    """Short hash of the parts of a config that decide the result."""
    return equal_hash(deciding(cfg))[:16]


def content_hash(value: Any) -> str:
    """sha256 of something that JSON can hold."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def equal_hash(value: Any) -> str:
    """`content_hash` that is the same for what Python finds equal, 1 and 1.0, and for null and nothing."""

    def alike(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: alike(part) for key, part in item.items() if part is not None}
        if isinstance(item, list):
            return [alike(part) for part in item]
        return int(item) if isinstance(item, bool) or (isinstance(item, float) and item.is_integer()) else item

    return content_hash(alike(value))


def typed() -> list[tuple[str, str]]:
    """(key, override) of everything on the command line; nothing in a process that a launcher has made."""
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    return [(word.lstrip("+~").split("=")[0], word) for word in words]


def option(group: str, name: str) -> str:
    """The option of a config group that was typed, which its `name` may differ from, as in ``model=open_clip``."""
    return HydraConfig.get().runtime.choices.get(group, name) if HydraConfig.initialized() else name


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
