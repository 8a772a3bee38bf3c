"""What a config must satisfy before data loads or a device is touched; each check names its key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig

from mergestream.runs.identity import typed
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import is_number, require_number, require_whole

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
EXPORTS = ("open_clip", "huggingface")


def check_stream(cfg: DictConfig) -> None:
    """Keys that train and merge share.

    Raises:
        UserError: on the first key that breaks its rule.
    """
    for group in ("dataset", "stream", "model", "method", "schedule", "data"):
        _group(cfg, group)
    check_targets(cfg)
    _names(cfg)
    check_pair(cfg)
    _whole(cfg, "tasks", 1)
    _whole(cfg, "seed", 0, 2**32 - 1)
    _whole(cfg, "batch_size", 1)
    _whole(cfg, "data.num_workers", 0)
    _number(cfg, "stream.validation", "at least 0 and below 1", lambda x: 0 <= x < 1)
    for key in ("data.download", "data.skip_corrupt"):
        if not isinstance(_get(cfg, key), bool):
            raise UserError(f"{key} must be true or false; got {key}={_get(cfg, key)}")
    if cfg.accelerator not in ("auto", "cpu", "gpu"):
        raise UserError(f"accelerator must be one of auto, cpu, gpu; got accelerator={cfg.accelerator}")
    if not isinstance(cfg.root, str) or (Path(cfg.root).exists() and not Path(cfg.root).is_dir()):
        raise UserError(f"root must be a folder; got root={cfg.root}, which is none")


def _names(cfg: DictConfig) -> None:
    for key in ("tag", "dataset.name", "stream.name", "model.name", "method.id"):
        value = _get(cfg, key)
        if value is None and key == "tag":
            continue
        text = str(value) if isinstance(value, (str, int, float)) else ""
        if not text or set(text) & set("/\\\0") or text.startswith((".", "_")):
            raise UserError(f"{key} becomes a folder name, without / and not starting with . or _; got {key}={value}")


def check_targets(cfg: DictConfig) -> None:
    """
    Raises:
        UserError: if allow_targets is no list of names, or not what the command line says.
    """
    value = cfg.allow_targets
    if not isinstance(value, ListConfig) or not all(isinstance(name, str) and name.isidentifier() for name in value):
        raise UserError(f"allow_targets must be a list of packages, such as [my_package]; got allow_targets={value}")
    if value and HydraConfig.initialized() and "allow_targets" not in dict(typed()):
        raise UserError(f"allow_targets={value} counts on the command line only, not in a file that is passed around")


def check_pair(cfg: DictConfig) -> None:
    """Whether the dataset can be cut as the stream says.

    Raises:
        UserError: otherwise.
    """
    suite, domains = "datasets" in cfg.dataset, "domains" in cfg.dataset
    if cfg.stream.name == "domain" and (suite or not domains):
        raise UserError(
            "stream=domain needs a dataset with domains, such as imagenet_r, domainnet or glyphs; "
            f"got dataset={cfg.dataset.name}"
        )
    if cfg.stream.name == "domain" and cfg.dataset.get("mirror") is not None:
        raise UserError(f"stream=domain needs the official files; dataset.mirror={cfg.dataset.mirror} has no domains")
    if suite and cfg.dataset.domains != len(cfg.dataset.datasets):
        raise UserError(
            f"dataset.domains must be the number of dataset.datasets, {len(cfg.dataset.datasets)}; "
            f"got dataset.domains={cfg.dataset.domains}"
        )
    if cfg.stream.name == "dataset" and suite and cfg.tasks != cfg.dataset.domains:
        raise UserError(f"tasks must be {cfg.dataset.domains}, the number of dataset.datasets; got tasks={cfg.tasks}")
    if cfg.stream.name == "dataset" and not suite:
        raise UserError(
            "stream=dataset needs several datasets, such as dataset=eight_datasets; "
            f"got dataset={cfg.dataset.name}. Try stream=class."
        )


def check_training(cfg: DictConfig) -> None:
    """Keys of train.yaml.

    Raises:
        UserError: on the first key that breaks its rule.
    """
    check_stream(cfg)
    for group in ("optimizer", "logger", "strategy"):
        _group(cfg, group)
    _bound(cfg, "optimizer")
    _bound(cfg, "strategy")
    _epochs(cfg)
    _number(cfg, "gradient_clip", "positive", lambda x: x > 0)
    _number(cfg, "optimizer.lr", "positive", lambda x: x > 0)
    _number(cfg, "optimizer.weight_decay", "at least 0", lambda x: x >= 0)
    if cfg.precision not in PRECISIONS:
        raise UserError(f"precision must be one of {', '.join(PRECISIONS)}; got precision={cfg.precision}")
    for key in ("merge_every_task", "keep_tasks", "repair"):
        if not isinstance(cfg[key], bool):
            raise UserError(f"{key} must be true or false; got {key}={cfg[key]}")
    _checkpoint(cfg)
    _number(cfg, "strategy.scale", "finite")
    check_scale(cfg["lambda"])
    if not cfg.keep_tasks and not cfg.merge_every_task:
        raise UserError("keep_tasks=false would leave nothing to merge; write merge_every_task=true with it")
    warmup = cfg.schedule.warmup
    if isinstance(warmup, bool) or not (
        (isinstance(warmup, int) and warmup >= 0) or (isinstance(warmup, float) and 0 <= warmup <= 1)
    ):
        raise UserError(
            "schedule.warmup must be a number of steps (500) or a fraction of all steps between 0.0 and 1.0; "
            f"got schedule.warmup={warmup}"
        )


def check_merge(cfg: DictConfig) -> None:
    """Keys of merge.yaml.

    Raises:
        UserError: on the first key that breaks its rule.
    """
    _scales(cfg)
    _group(cfg, "strategy")
    _bound(cfg, "strategy")
    _number(cfg, "strategy.scale", "finite")
    if "seed" in cfg.strategy:
        _whole(cfg, "strategy.seed", 0)
    if not isinstance(cfg.prefixes, bool):
        raise UserError(f"prefixes must be true or false; got prefixes={cfg.prefixes}")
    if cfg.accelerator not in ("auto", "cpu", "gpu"):
        raise UserError(f"accelerator must be one of auto, cpu, gpu; got accelerator={cfg.accelerator}")
    if cfg.export not in (None, *EXPORTS):
        raise UserError(f"export must be one of {', '.join(EXPORTS)}, or null; got export={cfg.export}")
    for key in ("base", "out"):
        if cfg[key] is not None and not isinstance(cfg[key], str):
            raise UserError(f"{key} must be the path of a file; got {key}={cfg[key]}")
    paths = cfg.checkpoints
    if paths is not None and not (isinstance(paths, ListConfig) and all(isinstance(path, str) for path in paths)):
        raise UserError(f"checkpoints must be a list of files, such as [A.safetensors,B.pt]; got checkpoints={paths}")


def check_analysis(cfg: DictConfig) -> None:
    """Keys of analyze.yaml.

    Raises:
        UserError: on the first key that breaks its rule.
    """
    for group in ("analysis", "strategy"):
        _group(cfg, group)
        _bound(cfg, group)
    _number(cfg, "strategy.scale", "finite")
    if cfg["lambda"] is not None:
        _number(cfg, "lambda", "or null for the strategy's own")


def _scales(cfg: DictConfig) -> None:
    value = cfg["lambda"]
    if value == "select":
        candidates = cfg.candidates
        if not isinstance(candidates, ListConfig) or not candidates or not all(is_number(c) for c in candidates):
            raise UserError(f"candidates must be a list of numbers, such as [0.3,0.5,0.7]; got candidates={candidates}")
        return
    for scale in value if isinstance(value, ListConfig) else [value]:
        check_scale(scale)
    if isinstance(value, ListConfig) and (not value or len(set(value)) < len(value) or None in value):
        raise UserError(f"lambda must be a number, different numbers such as [0.3,0.5], or select; got lambda={value}")


def check_scale(scale: Any) -> None:
    """λ is any finite number or null; a negative one subtracts the task vector.

    Raises:
        UserError: otherwise.
    """
    if scale is not None and not is_number(scale):
        raise UserError(
            "lambda must be a finite number, a list of them, select, or null for the strategy's own; "
            f"got lambda={scale}"
        )


def _checkpoint(cfg: DictConfig) -> None:
    for name, keys in (
        ("launcher", ("max_restarts", "timeout_minutes")),
        ("checkpoint", ("every_epochs", "every_minutes")),
    ):
        if not isinstance(cfg[name], DictConfig) or set(cfg[name]) != set(keys):
            raise UserError(f"{name} must hold {' and '.join(keys)}, and nothing else; got {name}={cfg[name]}")
    _whole(cfg, "launcher.max_restarts", 0)
    _number(cfg, "launcher.timeout_minutes", "positive", lambda x: x > 0)
    if cfg.checkpoint.every_epochs is not None:
        _whole(cfg, "checkpoint.every_epochs", 1)
    if cfg.checkpoint.every_minutes is not None:
        _number(cfg, "checkpoint.every_minutes", "at least 0, or null for never", lambda x: x >= 0)


def _epochs(cfg: DictConfig) -> None:
    if not isinstance(cfg.epochs, ListConfig):
        _whole(cfg, "epochs", 1)
        return
    wrong = [n for n in cfg.epochs if not isinstance(n, int) or isinstance(n, bool) or n < 1]
    if wrong or len(cfg.epochs) != cfg.tasks:
        raise UserError(
            f"epochs must be a whole number, or a list with one for each of the {cfg.tasks} tasks; "
            f"got epochs={cfg.epochs}. Write for example epochs=10."
        )
    if cfg.method.get("data") == "all":
        raise UserError(f"method={cfg.method.id} trains one task, so epochs must be one number; write epochs=10")


def _group(cfg: DictConfig, group: str) -> None:
    if not isinstance(cfg.get(group), DictConfig):
        raise UserError(f"{group} must name an option of its group; got {group}={cfg.get(group)}. See --help.")
    target = cfg[group].get("_target_")
    if group not in ("schedule", "data") and not isinstance(target, str):
        raise UserError(f"{group}._target_ must name what to call; got {group}._target_={target}")


def _bound(cfg: DictConfig, group: str) -> None:
    if cfg[group].get("_partial_") is not True:
        raise UserError(f"{group}._partial_ must stay true; got {group}._partial_={cfg[group].get('_partial_')}")


def _whole(cfg: DictConfig, key: str, least: int, most: int | None = None) -> None:
    require_whole(key, _get(cfg, key), least, most)


def _number(cfg: DictConfig, key: str, rule: str, holds: Callable[[float], bool] = lambda x: True) -> None:
    require_number(key, _get(cfg, key), rule, holds)


def _get(cfg: DictConfig, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        node = node.get(part) if node is not None else None
    return node
