"""What each config key may be: the rule for its value alone, and the keys that each command takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import (
    is_number,
    is_whole,
    require_bool,
    require_choice,
    require_number,
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


def _whole(least: int, most: int | None = None) -> Rule:
    return lambda key, value: require_whole(key, value, least, most)


def _number(rule: str, holds: Callable[[float], bool] = lambda x: True) -> Rule:
    return lambda key, value: require_number(key, value, rule, holds)


def _choice(options: tuple[str, ...], null: str | None = None) -> Rule:
    return lambda key, value: require_choice(key, value, options, null=null)


def _or_null(rule: Rule) -> Rule:
    return lambda key, value: None if value is None else rule(key, value)


def folder(key: str, value: Any) -> None:
    """Require a folder, which need not exist."""
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
    "root": folder,
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
    "classifier": _or_null(folder),
    "accelerator": _choice(ACCELERATORS),
}
ANALYSIS: Mapping[str, Rule] = {
    "analysis._partial_": _bound,
    "strategy._partial_": _bound,
    "strategy.scale": _number("finite"),
    "lambda": _or_null(_number("or null for the strategy's own")),
}
