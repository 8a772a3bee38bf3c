"""The run that a config names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from mergestream.compose.overrides import CLUSTER, NAMING_KEYS, chosen, typed
from mergestream.runs.directory import Run

# What a merge and its run must agree in, besides what was typed.
COMPARED = ("dataset", "stream", "model", "method", "tasks", "seed")


def resolve(cfg: DictConfig) -> None:
    """Resolve the interpolations of a config, and let ``stream.increments`` decide the tasks that nobody typed.

    Where jobs run is taken out, since it changes nothing about them.
    """
    with open_dict(cfg):
        cfg.pop(CLUSTER, None)
    increments = OmegaConf.select(cfg, "stream.increments")
    if isinstance(increments, ListConfig) and "tasks" not in dict(typed()):
        cfg.tasks = len(increments)
    OmegaConf.resolve(cfg)


def data_decide_tasks(cfg: DictConfig) -> bool:
    """Return whether a stream has as many tasks as its data, which may grow: ``tasks`` then names no run."""
    return cfg.stream.name == "folders" or (cfg.stream.name == "domain" and "domains" not in cfg.dataset)


def merges_every_task(cfg: DictConfig) -> bool:
    """Return whether a training merges all tasks so far after every task: it is asked to, or the next starts there."""
    return bool(cfg.merge_every_task) or cfg.method.get("start") == "merged"


def run_of(cfg: DictConfig, extra: Sequence[str] = ()) -> Run:
    """Return the run that a config names.

    Args:
        cfg: a composed config of train.yaml, merge.yaml or analyze.yaml.
        extra: overrides that its command needs besides those that name the run.
    """
    names: dict[str, Any] = {
        "dataset": str(cfg.dataset.name),
        "stream_name": str(cfg.stream.name),
        "model": str(cfg.model.name),
        "method": str(cfg.method.id),
        "adapter": cfg.model.get("adapter") is not None,
    }
    options = {group: chosen(group, names[group]) for group in ("dataset", "model", "method")}
    tag = None if cfg.tag is None else str(cfg.tag)
    tasks = None if data_decide_tasks(cfg) else cfg.tasks
    return Run(Path(cfg.root), **names, tasks=tasks, seed=cfg.seed, tag=tag, options=options, extra=tuple(extra))


def trained_run(cfg: DictConfig, own_keys: Iterable[str]) -> tuple[Run, list[str]]:
    """Return the finished run that a config names, and the keys in which both must agree."""
    run = run_of(cfg, [word for _, word in typed(without=own_keys, without_keys=NAMING_KEYS)])
    return run, [*COMPARED, *(key for key, _ in typed(without=own_keys))]


def recorded(cfg: DictConfig) -> dict[str, Any]:
    """Return a resolved config as it is written into files."""
    config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    return {**config, "tasks": None} if data_decide_tasks(cfg) else config
