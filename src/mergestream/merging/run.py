"""Merge a finished run and evaluate the result, or merge files that this project did not make."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mergestream import display, files
from mergestream.checks import check_merge, check_stream
from mergestream.compose import build, load_clip, load_source, load_stream, local_device
from mergestream.errors import UserError
from mergestream.evaluation import evaluate
from mergestream.merging.engine import merge_checkpoints
from mergestream.methods.method import Method
from mergestream.models.clip import text_head
from mergestream.results import assemble
from mergestream.runs import Run, readable
from mergestream.strategies.strategy import Strategy

MERGE_KEYS = ("strategy", "lambda", "prefixes", "base", "checkpoints", "out")
NAMING_KEYS = ("dataset", "tasks", "method", "model", "seed", "stream", "tag", "root")  # already in Run.command


def merge(cfg: DictConfig) -> None:
    """Merge what the config names: ``checkpoints`` onto ``base`` into ``out``, or the run of the same config values.

    Raises:
        UserError: if the config, the run or a file is not what it must be.
    """
    OmegaConf.resolve(cfg)
    check_merge(cfg)
    strategy, options = bound_strategy(cfg)
    scale = float(cfg.strategy.scale if cfg["lambda"] is None else cfg["lambda"])
    given = [key for key in ("base", "checkpoints", "out") if cfg[key] is not None]
    if given:
        if missing := [key for key in ("base", "checkpoints", "out") if key not in given]:
            raise UserError(f"base, checkpoints and out go together; got {given[0]} without {missing[0]}")
        merge_checkpoints(cfg.base, list(cfg.checkpoints), strategy, cfg.out, scale=scale, **options)
        print(f"merged {len(cfg.checkpoints)} checkpoints with {strategy.name}, λ = {scale:g}, into {cfg.out}")
        return
    check_stream(cfg)
    extra = [word for key, word in _typed_of_training() if key not in NAMING_KEYS]
    merge_run(cfg, Run.of(cfg, extra), strategy, scale, options)


def bound_strategy(cfg: DictConfig) -> tuple[Strategy, dict[str, Any]]:
    """The strategy of the ``strategy`` group, and all of its options."""
    bound: partial[Any] = build(cfg.strategy, without=("scale",))
    strategy: Any = bound.func
    return strategy, strategy.check(bound.keywords)


def merge_run(cfg: DictConfig, run: Run, strategy: Strategy, scale: float, options: dict[str, Any]) -> None:
    """Merge the encoders of `run`, evaluate, and write both below its ``merges`` folder."""
    run.require_finished()
    typed = [key for key, _ in _typed_of_training()]
    run.require_same(cfg, ["dataset", "stream", "model", "method", "tasks", "seed", *typed])
    trained = files.read_json(run.metrics, "summary", "timing")
    method: Method = build(cfg.method)
    if method.data == "none":
        raise UserError(f"a merge needs trained encoders; method={cfg.method.id} trains none. Try method=seq.")
    joint = method.data == "all"

    began = time.monotonic()
    source = load_source(cfg)
    clip = load_clip(cfg)
    stream = load_stream(cfg, clip.transforms, source)
    if run.stream()["tasks"] != stream.describe()["tasks"]:
        raise UserError(f"the data are not those that {readable(run.path)} was trained on; compare its stream.json")
    encoders = run.trained_encoders(1 if joint else len(stream))
    base, parameters = run.base_file(), run.base()["clip_parameters"]
    device = local_device(cfg.accelerator)
    clip.model.to(device)
    head = text_head(clip, stream.source.class_names, stream.source.templates)
    zero_shot = evaluate(clip.encoder, head, stream, seen=0, device=device)
    timing = {"setup": time.monotonic() - began, "merging": 0.0, "evaluation": 0.0}

    folder = run.path / "merges" / merge_id(strategy, scale, options, cfg.seed)
    counts = list(range(1, len(encoders) + 1)) if cfg.prefixes else [len(encoders)]
    rows, seen = [], []
    with files.whole(folder / "merged.safetensors") as out:
        for count in counts:  # the last is the merge of all tasks: the one that stays
            started = time.monotonic()
            files_of = encoders[:count]
            merge_checkpoints(base, files_of, strategy, out, scale=scale, clip_parameters=parameters, **options)
            merged = time.monotonic()
            clip.encoder.load_state_dict(files.read_tensors(out))
            seen.append(len(stream) if joint else count)
            rows.append(evaluate(clip.encoder, head, stream, seen=seen[-1], device=device))
            timing["merging"] += merged - started
            timing["evaluation"] += time.monotonic() - merged
    timing["total"] = time.monotonic() - began
    metrics = assemble("merge", cfg, zero_shot, rows, seen, timing)
    changed = _changed(strategy, options, cfg.seed)
    metrics["merge"] = {"strategy": strategy.name, "scale": scale, "options": options, "changed": changed}
    files.write_json(folder / "metrics.json", metrics)
    _show(trained, folder, metrics)


def merge_id(strategy: Strategy, scale: float, options: dict[str, Any], seed: int) -> str:
    """Folder of a merge: ``magmax-0.5``; options that differ from the defaults come in between.

    The default of an option `seed` is the run's own.
    """
    changed = [f"{key}={value}" for key, value in sorted(_changed(strategy, options, seed).items())]
    return "-".join([strategy.name, *changed, f"{scale:.12g}"])


def _changed(strategy: Strategy, options: dict[str, Any], seed: int) -> dict[str, Any]:
    defaults = {**strategy.defaults(), "seed": seed}
    return {key: value for key, value in options.items() if value != defaults[key]}


def _typed_of_training() -> list[tuple[str, str]]:
    """(key, override) of everything on the command line that is not about the merge itself."""
    typed = [(word.lstrip("+~").split("=")[0], word) for word in HydraConfig.get().overrides.task]
    return [(key, word) for key, word in typed if key.split(".")[0] not in MERGE_KEYS]


def _show(trained: dict[str, Any], folder: Path, metrics: dict[str, Any]) -> None:
    columns = ["", "overall", "average", "forgetting", "seconds"]
    rows = []
    merged = metrics["merge"]
    label = f"{metrics['config']['method']['id']} + {merged['strategy']}, λ = {merged['scale']:g}"
    for name, result in ((metrics["config"]["method"]["id"], trained), (label, metrics)):
        summary = result["summary"]
        values = [summary["final_accuracy"], summary["average_accuracy"], summary["forgetting"]]
        rows.append([name, *values, result["timing"].get("merging", result["timing"].get("training"))])
    zero_shot = metrics["zero_shot"]
    average = sum(zero_shot["task_agnostic"]) / len(zero_shot["task_agnostic"])
    display.table("merged", columns, [["zero-shot", zero_shot["overall"], average, None, None], *rows])
    print(f"results in {readable(folder)}")
