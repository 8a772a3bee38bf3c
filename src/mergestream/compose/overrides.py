"""Reads what was typed on the command line, as Hydra reports it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mergestream.runtime.errors import UserError

# Keys that `Run.command` names itself; it does not name their inner keys, such as ``method.strength``.
NAMING_KEYS = ("dataset", "tasks", "method", "model", "seed", "stream", "tag", "root", "experiment", "repair")
# Keys of merge.py and analyze.py that say nothing about the training.
ADJUSTMENT_KEYS = ("calibration", "weights", "depth", "include", "exclude")
MERGE_KEYS: tuple[str, ...] = ("strategy", *ADJUSTMENT_KEYS, "lambda", "candidates", "prefixes", "export")
MERGE_KEYS += ("base", "checkpoints", "out", "dtype", "on_mismatch", "bn", "overwrite")
ANALYSIS_KEYS = ("analysis", "strategy", *ADJUSTMENT_KEYS, "lambda")
PREDICTION_KEYS = ("images", "top", "out", "classes", "classifier")
ENCODER_KEYS = ("encoder", "strategy", *ADJUSTMENT_KEYS, "lambda", "bn")  # which encoder of a run is meant
HELD_OUT_KEYS = ("on", "options")  # besides these, of evaluate.py
CLUSTER = "cluster"  # the node that says where jobs run
COMMANDS = ("train", "merge", "predict", "evaluate", "analyze", "report", "fetch")
NODES = ("data", "launcher", "checkpoint")  # parts of a config whose keys the commands read one by one


def typed(*, without: Iterable[str] = (), without_keys: Iterable[str] = ()) -> list[tuple[str, str]]:
    """Return (key, override) of what was typed for the job on the command line; nothing in a process without one.

    What says where it runs is left out.

    Args:
        without: first parts of keys to leave out.
        without_keys: whole keys to leave out.
    """
    words = HydraConfig.get().overrides.task if HydraConfig.initialized() else []
    pairs = [(word.lstrip("+~").split("=")[0], word) for word in words]
    return [(k, word) for k, word in pairs if k.split(".")[0] not in {*without, CLUSTER} and k not in set(without_keys)]


def chosen(group: str, default: str) -> str:
    """Return the option of a config group that was typed, as in ``model=open_clip``; its `name` may be another."""
    return HydraConfig.get().runtime.choices.get(group, default) if HydraConfig.initialized() else default


def require_read(cfg: DictConfig) -> None:
    """Check that every key, typed with ``+`` or set by an experiment, is one that is read.

    Args:
        cfg: the composed config, before its interpolations are resolved: a key that one of them names is read by it.

    Raises:
        UserError: if a typed key is none of the command's, or another key is none of any command's.
    """
    if not HydraConfig.initialized():
        return
    (folder,) = [Path(s.path) for s in HydraConfig.get().runtime.config_sources if s.provider == "main"]
    own = _defined(folder, str(HydraConfig.get().job.config_name))
    anywhere = own.union(*(_defined(folder, name) for name in COMMANDS))
    added = {key.partition("@")[0]: word for key, word in typed() if word.startswith("+")}
    named = set(re.findall(r"\$\{([\w.]+)", OmegaConf.to_yaml(cfg)))
    for key, value in _keys(cfg, folder):
        if key in (own if key in added else anywhere) or any(f"{n}.".startswith(f"{key}.") for n in named):
            continue
        raise UserError(unknown(key, own, added.get(key, f"{key}={value}")))


def unknown(key: str, known: Iterable[str], shown: str) -> str:
    """Return the line on a key that is not `known`, with the nearest that is; `shown` is how it was typed."""
    (nearest,) = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0)
    return f"unknown key: {shown}; did you mean {nearest}? See --help for all keys"


def _keys(cfg: DictConfig, folder: Path) -> Iterator[tuple[str, object]]:
    """Yield the dotted keys of a config and their values, but not those of nodes that are called with their keys."""
    for name, value in cast("dict[str, object]", OmegaConf.to_container(cfg)).items():
        if isinstance(value, dict) and "_target_" not in value and name in (*NODES, "schedule"):
            yield from ((f"{name}.{inner}", item) for inner, item in value.items())
        elif not (folder / name).is_dir():
            yield name, value


@cache  # a sweep asks for each of its jobs
def _defined(folder: Path, name: str) -> set[str]:
    """Return the dotted keys that the YAML files of a command define."""
    defaults = OmegaConf.select(OmegaConf.load(folder / f"{name}.yaml"), "defaults")
    shared = [("", folder / f"{part}.yaml") for part in ("common", "adjustments") if part in defaults]
    options = [("schedule.", path) for path in folder.glob("schedule/*.yaml")] if "common" in defaults else []
    defined: set[str] = set()
    for prefix, path in [("", folder / f"{name}.yaml"), *shared, *options]:
        for key, value in cast("dict[str, object]", OmegaConf.to_container(OmegaConf.load(path))).items():
            inner = value if isinstance(value, dict) and key in NODES else {}
            defined |= {f"{prefix}{key}", *(f"{prefix}{key}.{part}" for part in inner)}
    return defined - {"defaults", "hydra"}
