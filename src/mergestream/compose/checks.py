"""The checks of a config before data are loaded or a device is used: every key, and keys that depend on others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig

from mergestream.compose.keys import (
    ADJUSTMENTS,
    ANALYSIS,
    CALIBRATION,
    ENCODER,
    MERGE,
    PREDICTION,
    SELECT,
    STREAM,
    TRAINING,
    Rule,
    folder,
)
from mergestream.compose.overrides import typed
from mergestream.compose.run import data_decide_tasks, merges_every_task
from mergestream.runs.directory import CURVATURES
from mergestream.runs.identity import FORMER
from mergestream.runtime.errors import UserError, program
from mergestream.runtime.rules import is_whole, require_numbers, require_whole


def check_stream(cfg: DictConfig) -> None:
    """Check the keys of common.yaml."""
    _require_groups(cfg, ("dataset", "stream", "model", "method"))
    _require_nodes(cfg, ("schedule", "data"))
    check_targets(cfg)
    _check_dataset(cfg)  # before the tasks, whose default depends on it
    _apply(STREAM, cfg)
    if cfg.data.forget and cfg.data.cache is True:
        raise UserError("data.cache=true reads all images, which data.forget=true lets be gone. Leave one of them out")


def check_training(cfg: DictConfig) -> None:
    """Check the keys of train.yaml."""
    check_stream(cfg)
    _require_groups(cfg, ("optimizer", "logger", "strategy"))
    _require_nodes(cfg, ("launcher", "checkpoint", "curvature"))
    _apply(TRAINING, cfg)
    if cfg.get("calibration") is not None:
        raise UserError(
            "calibration is for merge.py, which has the encoders of all tasks; a training merges them as they come. "
            "Leave calibration out, and merge when the training has finished"
        )
    _check_epochs(cfg)
    _check_adapter(cfg)
    if cfg.accumulate > cfg.batch_size:
        raise UserError(
            f"accumulate must be at most batch_size={cfg.batch_size}, which it divides; got accumulate={cfg.accumulate}"
        )
    if cfg.watch is not None and HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN:
        raise UserError(
            f"watch is for a single run, since it never ends; got watch={cfg.watch} in a sweep. Leave it out"
        )
    if cfg.watch is not None and not data_decide_tasks(cfg):
        raise UserError(
            f"watch needs a stream that grows, such as dataset=folder stream=folders; got watch={cfg.watch} with "
            f"stream={cfg.stream.name}"
        )
    if not cfg.keep_tasks and not merges_every_task(cfg):
        raise UserError("keep_tasks=false would leave nothing to merge; write merge_every_task=true with it")


def _check_adapter(cfg: DictConfig) -> None:
    """Check that a training needs nothing that adapters cannot give, and that their options have adapters."""
    if cfg.model.adapter is None:
        for key in ("adapter_rank", "adapter_alpha", "adapter_targets"):
            if (value := _plain(cfg.model[key])) != FORMER[f"model.{key}"]:
                raise UserError(f"model.{key} is for model.adapter=lora; got model.{key}={value}. Leave it out")
        return
    wrong = {
        f"method={cfg.method.id}": cfg.method.get("start") == "merged",  # no adapter of this rank holds a merge
        f"method.average={cfg.method.average}": cfg.method.average is not None,
        **{f"curvature.{kind}=true": cfg.curvature[kind] for kind in CURVATURES},
    }
    if found := [words for words, is_wrong in wrong.items() if is_wrong]:
        raise UserError(
            f"model.adapter={cfg.model.adapter} works with method=seq, ind, joint, ewc and lwf, without averages of "
            f"weights and without curvature; got {found[0]}. Leave it out, or write model.adapter=null"
        )


def check_merge(cfg: DictConfig) -> None:
    """Check the keys of merge.yaml, but not those of common.yaml."""
    _require_groups(cfg, ("strategy",))
    _apply(MERGE, cfg)
    _check_adjustments(cfg)
    if "seed" in cfg.strategy:
        require_whole("strategy.seed", cfg.strategy.seed, 0)
    if cfg["lambda"] == SELECT:
        require_numbers("candidates", _plain(cfg.candidates), "such as [0.3,0.5,0.7]")
    if cfg.weights is not None and cfg.checkpoints is not None and len(cfg.weights) != len(cfg.checkpoints):
        raise UserError(
            f"weights must be {len(cfg.checkpoints)} numbers, one for each of the checkpoints; got {len(cfg.weights)}, "
            f"weights={cfg.weights}"
        )
    check_targets(cfg)


def _check_adjustments(cfg: DictConfig) -> None:
    """Check the keys of adjustments.yaml, and the group calibration."""
    _apply(ADJUSTMENTS, cfg)
    if cfg.get("calibration") is None:
        return
    _require_nodes(cfg, ("calibration",))
    if cfg.calibration.get("_target_") is not None:
        _require_groups(cfg, ("calibration",))
        _apply(CALIBRATION, cfg)
    elif options := [key for key in cfg.calibration if key != "_target_"]:
        raise UserError(
            f"calibration=none takes no options; got calibration.{options[0]}={cfg.calibration[options[0]]}. Name a "
            "calibration, such as calibration=svc"
        )


def check_analysis(cfg: DictConfig) -> None:
    """Check the keys of analyze.yaml."""
    _require_groups(cfg, ("analysis", "strategy"))
    _apply(ANALYSIS, cfg)
    _check_adjustments(cfg)
    check_stream(cfg)


def check_encoder(cfg: DictConfig) -> None:
    """Check the keys that name an encoder of a run, and those of common.yaml."""
    _require_groups(cfg, ("strategy",))
    _apply(ENCODER, cfg)
    _check_adjustments(cfg)
    check_stream(cfg)


def check_prediction(cfg: DictConfig) -> None:
    """Check the keys of predict.yaml, but not those that name a run."""
    _apply(PREDICTION, cfg)
    check_targets(cfg)


def check_report(cfg: DictConfig) -> None:
    """Check the keys of report.yaml."""
    if not isinstance(cfg.root, str) or not Path(cfg.root).is_dir():
        raise UserError(f"root must be a folder with runs; got root={cfg.root}. Type: {program('train')}")
    folder("out", cfg.out)


def check_targets(cfg: DictConfig) -> None:
    """Check that allow_targets lists packages and comes from the command line."""
    value = cfg.allow_targets
    if not isinstance(value, ListConfig) or not all(isinstance(name, str) and name.isidentifier() for name in value):
        raise UserError(f"allow_targets must be a list of packages, such as [my_package]; got allow_targets={value}")
    if value and HydraConfig.initialized() and "allow_targets" not in dict(typed()):
        raise UserError(f"allow_targets={value} works on the command line only, not in a file that is passed around")


def _apply(rules: Mapping[str, Rule], cfg: DictConfig) -> None:
    for key, rule in rules.items():
        node: Any = cfg
        for part in key.split("."):
            node = node.get(part) if node is not None else None
        rule(key, _plain(node))


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, ListConfig) else value


def _require_nodes(cfg: DictConfig, groups: tuple[str, ...]) -> None:
    for group in groups:
        if not isinstance(cfg.get(group), DictConfig):
            raise UserError(f"{group} must name an option of its group; got {group}={cfg.get(group)}. See --help.")


def _require_groups(cfg: DictConfig, groups: tuple[str, ...]) -> None:
    _require_nodes(cfg, groups)
    for group in groups:
        target = cfg[group].get("_target_")
        if not isinstance(target, str):
            raise UserError(f"{group}._target_ must name what to call; got {group}._target_={target}")


def _check_dataset(cfg: DictConfig) -> None:
    """Check that the stream can divide the dataset."""
    suite, domains, own = "datasets" in cfg.dataset, "domains" in cfg.dataset, "path" in cfg.dataset
    if cfg.stream.name == "domain" and (suite or not (domains or own)):
        raise UserError(
            "stream=domain needs a dataset with domains, such as imagenet_r, domainnet, glyphs, folder or table; "
            f"got dataset={cfg.dataset.name}"
        )
    if cfg.stream.name == "folders" and not own:
        raise UserError(
            f"stream=folders needs data of your own, dataset=folder or dataset=table; got dataset={cfg.dataset.name}"
        )
    if cfg.tasks is None and not data_decide_tasks(cfg):
        raise UserError(f"tasks must be a whole number, 1 or more, with stream={cfg.stream.name}; got tasks=null")
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


def _check_epochs(cfg: DictConfig) -> None:
    if not isinstance(cfg.epochs, ListConfig):
        require_whole("epochs", cfg.epochs, 1)
        return
    if data_decide_tasks(cfg):
        raise UserError(
            f"epochs must be one number with stream={cfg.stream.name}, whose data decide the number of tasks; "
            f"got epochs={cfg.epochs}. Write for example epochs=10."
        )
    if any(not is_whole(n) or n < 1 for n in cfg.epochs) or len(cfg.epochs) != cfg.tasks:
        raise UserError(
            f"epochs must be a whole number, or a list with one for each of the {cfg.tasks} tasks; "
            f"got epochs={cfg.epochs}. Write for example epochs=10."
        )
    if cfg.method.get("data") == "all":
        raise UserError(f"method={cfg.method.id} trains one task, so epochs must be one number; write epochs=10")
