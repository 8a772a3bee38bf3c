"""The rules for config values, checked before data are loaded or a device is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig

from mergestream.compose.overrides import typed
from mergestream.compose.run import data_decide_tasks, merges_every_task
from mergestream.runs.directory import CURVATURES
from mergestream.runs.identity import FORMER
from mergestream.runtime.errors import UserError, program
from mergestream.runtime.rules import (
    is_number,
    is_whole,
    require_bool,
    require_choice,
    require_number,
    require_numbers,
    require_whole,
)

Rule = Callable[[str, Any], None]

PRECISIONS = ("auto", "32-true", "bf16-mixed", "16-mixed")
ACCELERATORS = ("auto", "cpu", "gpu")
# Formats of an export, and what each writes beside the merge.
EXPORTS: Mapping[str, str] = {
    "open_clip": "open_clip.safetensors",
    "huggingface": "huggingface",
    "classifier": "classifier",
    "onnx": "classifier.onnx",
}
DTYPES = ("float32", "bfloat16", "float16")
MISMATCHES = ("error", "skip")
STATISTICS = ("average", "base", "recompute")
SELECT = "select"
STANDARD_INPUT = "-"
MERGE_OF_ALL, BASE, LAST = "merge", "base", "last"  # values of `encoder`, besides the number of a task


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
    _folder("out", cfg.out)


def check_targets(cfg: DictConfig) -> None:
    """Check that allow_targets lists packages and comes from the command line."""
    value = cfg.allow_targets
    if not isinstance(value, ListConfig) or not all(isinstance(name, str) and name.isidentifier() for name in value):
        raise UserError(f"allow_targets must be a list of packages, such as [my_package]; got allow_targets={value}")
    if value and HydraConfig.initialized() and "allow_targets" not in dict(typed()):
        raise UserError(f"allow_targets={value} works on the command line only, not in a file that is passed around")


def _whole(least: int, most: int | None = None) -> Rule:
    return lambda key, value: require_whole(key, value, least, most)


def _number(rule: str, holds: Callable[[float], bool] = lambda x: True) -> Rule:
    return lambda key, value: require_number(key, value, rule, holds)


def _choice(options: tuple[str, ...], null: str | None = None) -> Rule:
    return lambda key, value: require_choice(key, value, options, null=null)


def _or_null(rule: Rule) -> Rule:
    return lambda key, value: None if value is None else rule(key, value)


def _folder(key: str, value: Any) -> None:
    if not isinstance(value, str) or (Path(value).exists() and not Path(value).is_dir()):
        raise UserError(f"{key} must be a folder; got {key}={value}, which is not one")


def folder_name(key: str, value: Any) -> None:
    """Require the name of a folder or a file."""
    text = str(value) if isinstance(value, (str, int, float)) else ""
    if not text or set(text) & set("/\\\0") or text.startswith((".", "_")):
        rule = 'no "/" or "\\", no leading "." or "_"'
        raise UserError(f"{key} must be a valid folder name: {rule}; got {key}={value}")


def _path(key: str, value: Any) -> None:
    _require_quoted(key, value)
    if not isinstance(value, str):
        raise UserError(f"{key} must be the path of a file; got {key}={value}")


def _require_quoted(key: str, value: Any) -> None:
    """Refuse a path that Hydra read as a number or a truth value."""
    if isinstance(value, (bool, int, float)):
        raise UserError(
            f"{key} must be the path of a file; got {key}={value}, which was read as {type(value).__name__}. "
            "Write ./ before it, or quote it."
        )


def _paths(key: str, value: Any) -> None:
    for path in value if isinstance(value, list) else ():
        _require_quoted(key, path)
    if not isinstance(value, list) or not all(isinstance(path, str) for path in value):
        raise UserError(f"{key} must be a list of files, such as [A.safetensors,B.pt]; got {key}={value}")


def _images(key: str, value: Any) -> None:
    values = value if isinstance(value, list) else [value]
    for path in values:
        _require_quoted(key, path)
    if not values or not all(isinstance(path, str) and path for path in values):
        raise UserError(
            f"{key} must be a folder, a picture, a list of them such as [a.jpg,b.png], or - for standard input; "
            f"got {key}={value}"
        )


def _texts(key: str, value: Any) -> None:
    texts = value if isinstance(value, list) else []
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f'{key} must be a list of texts, such as ["a red fox","a wolf"]; got {key}={value}')
    if len({one_blank(text) for text in texts}) < len(texts):
        raise UserError(f"{key} must be different texts; got {key}={value}")


def one_blank(text: str) -> str:
    """Return a text without blanks around it, and with one blank for each run of them, as CLIP reads it."""
    return " ".join(text.split())


def _answers(key: str, value: Any) -> None:
    _path(key, value)
    if Path(value).suffix.lower() not in (".csv", ".jsonl") or Path(value).is_dir():
        raise UserError(f"{key} must be a file that ends in .csv or .jsonl; got {key}={value}")


def _bound(key: str, value: Any) -> None:
    if value is not True:
        raise UserError(f"{key} must stay true; got {key}={value}")


def _order(key: str, value: Any) -> None:
    listed = isinstance(value, list) and value and all(is_whole(item) or isinstance(item, str) for item in value)
    if value is not None and not isinstance(value, str) and not listed:
        raise UserError(
            f"{key} must be the name of an order, such as natural, shuffled or paper, or a list of numbers or names; "
            f"got {key}={value}"
        )


def _increments(key: str, value: Any) -> None:
    if value is not None and not (isinstance(value, list) and value and all(is_whole(n) and n > 0 for n in value)):
        raise UserError(
            f"{key} must be the number of classes of each task, such as [50,10,10], or null for equal shares; "
            f"got {key}={value}"
        )


def _version(key: str, value: Any) -> None:
    if value not in (None, 2):
        raise UserError(f"{key} must stay as it is, since it says what the reader returns; got {key}={value}")


def _workers(key: str, value: Any) -> None:
    if value != "auto" and not (is_whole(value) and value >= 0):
        raise UserError(f"{key} must be auto or a whole number, 0 or more; got {key}={value}")


def _cache(key: str, value: Any) -> None:
    if value not in ("auto", True, False) or is_number(value):
        raise UserError(f"{key} must be auto, true or false; got {key}={value}")


def _keys(*names: str) -> Rule:
    def rule(key: str, value: Any) -> None:
        if set(value) != set(names):
            raise UserError(f"{key} must hold {' and '.join(names)}, and nothing else; got {key}={value}")

    return rule


def _scale(key: str, value: Any) -> None:
    if value is not None and not is_number(value):
        raise UserError(
            f"{key} must be a finite number, a list of them, select, or null for the strategy's own; got {key}={value}"
        )


def _scales(key: str, value: Any) -> None:
    if value == SELECT:
        return
    for scale in value if isinstance(value, list) else [value]:
        _scale(key, scale)
    if isinstance(value, list) and (not value or len(set(value)) < len(value) or None in value):
        raise UserError(f"{key} must be a number, different numbers such as [0.3,0.5], or select; got {key}={value}")


def _factors(least: int) -> Rule:
    def rule(key: str, value: Any) -> None:
        if not isinstance(value, list) or len(value) < least or not all(map(is_number, value)):
            raise UserError(
                f"{key} must be a list of {least} or more finite numbers, such as [1,0.5], or null; got {key}={value}"
            )

    return rule


def _patterns(key: str, value: Any) -> None:
    if not isinstance(value, list) or not value or not all(isinstance(pattern, str) and pattern for pattern in value):
        raise UserError(
            f"{key} must be a list of patterns of names, such as [*attn*,*bias], or null; got {key}={value}"
        )


def _names(key: str, value: Any) -> None:
    if not isinstance(value, list) or not value or not all(isinstance(name, str) and name for name in value):
        raise UserError(f"{key} must be a list of names of layers, such as [in_proj,c_fc]; got {key}={value}")


def _encoder(key: str, value: Any) -> None:
    if value not in (MERGE_OF_ALL, BASE, LAST) and not (is_whole(value) and value >= 1):
        raise UserError(
            f"{key} must be {MERGE_OF_ALL} (of all tasks), {BASE} (θ₀), {LAST} (of the last task), or the number of a "
            f"task, 1 or more; got {key}={value}"
        )


def _one_scale(key: str, value: Any) -> None:
    if value != SELECT and value is not None and not is_number(value):
        raise UserError(
            f"{key} must be one number, {SELECT}, or null for the strategy's own, to name a merge; got {key}={value}"
        )


def _auto_or_bool(key: str, value: Any) -> None:
    if value != "auto" and not isinstance(value, bool):
        raise UserError(f"{key} must be auto, true or false; got {key}={value}")


def _evaluate(key: str, value: Any) -> None:
    if value not in ("each", "last") and not (is_whole(value) and value >= 1):
        raise UserError(
            f"{key} must be each (after every task), last, or a number n (after every n-th task and the last); "
            f"got {key}={value}"
        )


def _warmup(key: str, value: Any) -> None:
    if not (is_whole(value) and value >= 0) and not (isinstance(value, float) and 0 <= value <= 1):
        raise UserError(
            f"{key} must be a number of steps (500) or a fraction of all steps between 0.0 and 1.0; got {key}={value}"
        )


# The rule of each key. Keys without one are checked by the function that takes them.
STREAM: Mapping[str, Rule] = {
    "tag": _or_null(folder_name),
    "dataset.name": folder_name,
    "stream.name": folder_name,
    "model.name": folder_name,
    "method.id": folder_name,
    "model.adapter": _choice(("lora",), null="full fine-tuning"),
    "model.adapter_rank": _whole(1),
    "model.adapter_alpha": _number("positive", lambda x: x > 0),
    "model.adapter_targets": _names,
    "root": _folder,
    "tasks": _or_null(_whole(1)),
    "seed": _whole(0, 2**32 - 1),
    "batch_size": _whole(1),
    "dataset.version": _version,
    "dataset.order": _order,  # where stream.order comes from
    "stream.order": _order,
    "stream.increments": _increments,
    "stream.validation": _number("at least 0 and below 1", lambda x: 0 <= x < 1),
    "data.num_workers": _workers,
    "data.augment": _choice(("auto", "device", "pil")),
    "data.cache": _cache,
    "data.keep_mb": _number("0 or more", lambda x: x >= 0),
    "data.download": require_bool,
    "data.skip_corrupt": require_bool,
    "data.forget": require_bool,
    "accelerator": _choice(ACCELERATORS),
    "precision": _choice(PRECISIONS),
    "eval_precision": _choice(PRECISIONS),
}
TRAINING: Mapping[str, Rule] = {
    "optimizer._partial_": _bound,
    "optimizer.lr": _number("positive", lambda x: x > 0),
    "optimizer.weight_decay": _number("at least 0", lambda x: x >= 0),
    "gradient_clip": _number("positive", lambda x: x > 0),
    "method.average": _choice(("ema", "swa"), null="the last weights"),
    "method.average_every": _whole(1),
    "method.average_decay": _number("in [0, 1)", lambda x: 0 <= x < 1),
    "schedule.warmup": _warmup,
    "optimizer.fused": _or_null(require_bool),
    "accumulate": _whole(1),
    "activation_checkpointing": require_bool,
    "compile": _auto_or_bool,
    "threads": _or_null(_whole(1)),
    "evaluate": _evaluate,
    "launcher": _keys("max_restarts", "timeout_minutes"),
    "launcher.max_restarts": _whole(0),
    "launcher.timeout_minutes": _number("positive", lambda x: x > 0),
    "checkpoint": _keys("every_epochs", "every_minutes"),
    "checkpoint.every_epochs": _or_null(_whole(1)),
    "checkpoint.every_minutes": _or_null(_number("at least 0, or null for never", lambda x: x >= 0)),
    "repair": require_bool,
    "watch": _or_null(_number("positive, in seconds", lambda x: x > 0)),
    "curvature": _keys("fisher", "gram", "classes", "samples"),
    "curvature.fisher": require_bool,
    "curvature.gram": require_bool,
    "curvature.classes": require_bool,
    "curvature.samples": _whole(1),
    "merge_every_task": require_bool,
    "keep_tasks": require_bool,
    "strategy._partial_": _bound,
    "strategy.scale": _number("finite"),
    "lambda": _scale,
}
MERGE: Mapping[str, Rule] = {
    "strategy._partial_": _bound,
    "strategy.scale": _number("finite"),
    "lambda": _scales,
    "prefixes": require_bool,
    "export": _choice(tuple(EXPORTS), null="none"),
    "accelerator": _choice(ACCELERATORS),
    "base": _or_null(_path),
    "checkpoints": _or_null(_paths),
    "out": _or_null(_path),
    "dtype": _choice(DTYPES, null="that of the base"),
    "on_mismatch": _choice(MISMATCHES),
    "overwrite": require_bool,
    "bn": _choice(STATISTICS),
}
ADJUSTMENTS: Mapping[str, Rule] = {
    "weights": _or_null(_factors(1)),
    "depth": _or_null(_factors(2)),
    "include": _or_null(_patterns),
    "exclude": _or_null(_patterns),
}
CALIBRATION: Mapping[str, Rule] = {
    "calibration._partial_": _bound,
    "calibration.scale": _number("finite"),
}
ENCODER: Mapping[str, Rule] = {
    "encoder": _encoder,
    "strategy._partial_": _bound,
    "strategy.scale": _number("finite"),
    "lambda": _one_scale,
    "bn": _choice(STATISTICS),
}
PREDICTION: Mapping[str, Rule] = {
    "images": _images,
    "top": _whole(1),
    "out": _or_null(_answers),
    "classes": _or_null(_texts),
    "classifier": _or_null(_folder),
    "accelerator": _choice(ACCELERATORS),
}
ANALYSIS: Mapping[str, Rule] = {
    "analysis._partial_": _bound,
    "strategy._partial_": _bound,
    "strategy.scale": _number("finite"),
    "lambda": _or_null(_number("or null for the strategy's own")),
}


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
