"""What was typed on the command line, as Hydra reports it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mergestream.runtime.errors import UserError

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


def require_read(cfg: DictConfig) -> None:
    """Check that every key that was added with ``+`` is one that the command reads.

    Raises:
        UserError: if a key is neither defined in the YAML files of the command nor an argument of a ``_target_``.
    """
    added = [(key, word) for key, word in typed() if word.startswith("+")]
    if not added:
        return
    (folder,) = [Path(s.path) for s in HydraConfig.get().runtime.config_sources if s.provider == "main"]
    defined = _defined(folder, str(HydraConfig.get().job.config_name))
    for key, word in added:
        group = (folder / key.partition("@")[0]).is_dir() and "." not in key
        if group or key in defined or _is_argument(cfg, key):
            continue
        (nearest,) = difflib.get_close_matches(key, sorted(defined), n=1, cutoff=0)
        raise UserError(
            f"a key must be one that the command reads; got {word}. The nearest one is {nearest}; see --help"
        )


def _defined(folder: Path, name: str) -> set[str]:
    """Return the dotted keys that the YAML files of a command define."""
    options = [(f"{path.parent.name}.", path) for path in folder.glob("schedule/*.yaml")]
    defined: set[str] = set()
    for prefix, path in [("", folder / "common.yaml"), ("", folder / f"{name}.yaml"), *options]:
        node = OmegaConf.load(path) if path.is_file() else OmegaConf.create()
        for key, value in cast("dict[str, object]", OmegaConf.to_container(node)).items():
            inner = value if isinstance(value, dict) and key != "hydra" else {}
            defined |= {f"{prefix}{key}", *(f"{prefix}{key}.{part}" for part in inner)}
    return defined - {"defaults"}


def _is_argument(cfg: DictConfig, key: str) -> bool:
    """Return whether a key belongs to a node that is called; the call checks its arguments."""
    parts = key.split(".")
    above = [OmegaConf.select(cfg, ".".join(parts[:depth])) for depth in range(1, len(parts))]
    return key.startswith("hydra.") or any(isinstance(node, DictConfig) and "_target_" in node for node in above)
