"""What was typed on the command line, as Hydra reports it."""

from __future__ import annotations

from collections.abc import Iterable

from hydra.core.hydra_config import HydraConfig

# Keys that `Run.command` names itself; it does not name their inner keys, such as ``method.strength``.
NAMING_KEYS = ("dataset", "tasks", "method", "model", "seed", "stream", "tag", "root", "experiment", "repair")
# Keys of merge.py and analyze.py that say nothing about the training.
MERGE_KEYS: tuple[str, ...] = ("strategy", "lambda", "candidates", "prefixes", "export")
MERGE_KEYS += ("base", "checkpoints", "out", "dtype", "on_mismatch", "bn", "overwrite")
ANALYSIS_KEYS = ("analysis", "strategy", "lambda")


def typed(*, without: Iterable[str] = (), without_keys: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Return (key, override) of everything typed on the command line; nothing in a process without one.

    Args:
        without: first parts of keys to leave out.
        without_keys: whole keys to leave out.
    """
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    pairs = [(word.lstrip("+~").split("=")[0], word) for word in words]
    return [(k, word) for k, word in pairs if k.split(".")[0] not in set(without) and k not in set(without_keys)]


def chosen(group: str, default: str) -> str:
    """Return the option of a config group that was typed, as in ``model=open_clip``; its `name` may be another."""
    return HydraConfig.get().runtime.choices.get(group, default) if HydraConfig.initialized() else default
