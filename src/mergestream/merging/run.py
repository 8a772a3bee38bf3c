"""Merge a finished run and evaluate the result, or merge files that this project did not make."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import Tensor

from mergestream import __version__
from mergestream.compose import targets
from mergestream.compose.build import build, load_clip, load_evaluator, local_device
from mergestream.compose.checks import check_merge, check_stream, check_targets
from mergestream.display import tables
from mergestream.merging.accumulate import RunningMerge
from mergestream.merging.engine import merge_checkpoints, merged_task_vector, path_of
from mergestream.merging.export import export
from mergestream.methods.method import Method
from mergestream.models.clip import Clip
from mergestream.runs.directory import Run, readable
from mergestream.runs.identity import NAMING_KEYS, typed
from mergestream.runs.results import Counts, assemble, zero_shot_counts
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.lock import held
from mergestream.strategies.strategy import Strategy

MERGE_KEYS: tuple[str, ...] = (
    "strategy",
    "lambda",
    "candidates",
    "prefixes",
    "base",
    "checkpoints",
    "out",
    "dtype",
    "on_mismatch",
)
MERGE_KEYS += ("export",)
SELECT = "select"
_OF_THE_MERGE = (*MERGE_KEYS, "root", "accelerator", "data")


def merge(cfg: DictConfig) -> None:
    """Merge what the config names: ``checkpoints`` onto ``base`` into ``out``, or the run of the same config values.

    Raises:
        UserError: if the config, the run or a file is not what it must be.
    """
    OmegaConf.resolve(cfg)
    check_merge(cfg)
    check_targets(cfg)
    targets.allow(cfg.allow_targets)
    strategy, options = bound_strategy(cfg)
    given = [key for key in ("base", "checkpoints", "out") if cfg[key] is not None]
    if given:
        if missing := [key for key in ("base", "checkpoints", "out") if key not in given]:
            raise UserError(f"base, checkpoints and out go together; got {given[0]} without {missing[0]}")
        merge_files(cfg, strategy, options)
        return
    for key in ("dtype", "on_mismatch"):
        if cfg[key] not in (None, "error"):
            raise UserError(
                f"{key} is for base, checkpoints and out; the encoders of a run agree; got {key}={cfg[key]}"
            )
    check_stream(cfg)
    extra = [word for key, word in _typed_of_training() if key not in NAMING_KEYS]
    merge_run(cfg, Run.of(cfg, extra), strategy, options)


def bound_strategy(cfg: DictConfig) -> tuple[Strategy, dict[str, Any]]:
    """The strategy of the ``strategy`` group, and all of its options."""
    bound: partial[Any] = build(cfg.strategy, without=("scale",))
    strategy: Any = bound.func
    return strategy, strategy.check(bound.keywords)


def scales_of(cfg: DictConfig) -> list[float]:
    """λ: the published one, one or several given ones; none where it is to be selected."""
    value = cfg["lambda"]
    if value == SELECT:
        return []
    if value is None:
        return [float(cfg.strategy.scale)]
    return [float(v) for v in value] if isinstance(value, ListConfig) else [float(value)]


def merge_files(cfg: DictConfig, strategy: Strategy, options: dict[str, Any]) -> None:
    """Merge files that this project did not make."""
    if not (scales := scales_of(cfg)):
        raise UserError("lambda=select needs the validation data of a run; for base and checkpoints give a number")
    several = isinstance(cfg["lambda"], ListConfig)
    device = local_device("gpu") if cfg.accelerator == "gpu" else "cpu"
    scale = scales if several else scales[0]
    how = {"dtype": cfg.dtype, "on_mismatch": cfg.on_mismatch, "device": device}
    if cfg.export is not None and (several or Path(cfg.out).suffix != ".safetensors"):
        raise UserError(f"export needs one merged file, out=….safetensors; got out={cfg.out}, lambda={cfg['lambda']}")
    skipped = merge_checkpoints(cfg.base, list(cfg.checkpoints), strategy, cfg.out, scale=scale, **how, **options)
    for value in scales:
        out = path_of(Path(cfg.out), value) if several else cfg.out
        print(f"merged {len(cfg.checkpoints)} checkpoints with {strategy.name}, λ = {value:g}, into {out}")
    if skipped:
        print(f"left as in the base (on_mismatch=skip): {', '.join(skipped)}")
    if cfg.export is not None:
        out = Path(cfg.out)
        _export(load_clip(cfg), files.read_tensors(out), cfg.export, out.with_suffix(""))


def merge_run(cfg: DictConfig, run: Run, strategy: Strategy, options: dict[str, Any]) -> None:
    """Merge the encoders of `run`, evaluate, and write both below its ``merges`` folder."""
    run.require_finished()
    keys = [key for key, _ in _typed_of_training()]
    run.require_same(cfg, ["dataset", "stream", "model", "method", "tasks", "seed", *keys])
    trained = run.read(run.metrics, "config", "summary", "timing", "provenance", "zero_shot", "test_samples")
    method: Method = build(cfg.method)
    if method.data == "none":
        raise UserError(f"a merge needs trained encoders; method={cfg.method.id} trains none. Try method=seq.")
    joint = method.data == "all"
    scales = scales_of(cfg)
    ids = [merge_id(strategy, scale, options, cfg.seed) for scale in scales] or [
        merge_id(strategy, SELECT, options, cfg.seed)
    ]
    folders = [run.path / "merges" / name for name in ids]
    if all(_is_done(cfg, run, folder) for folder in folders):
        print("already merged" + ("" if cfg.export else ", nothing to do"))
        clip = load_clip(cfg) if cfg.export else None
        for folder in folders:
            if clip is not None:
                with held(folder):
                    _export(clip, files.read_tensors(folder / "merged.safetensors"), cfg.export, folder)
            _show(trained, folder, files.read_json(folder / "metrics.json", "summary", "merge"))
        return

    began = time.monotonic()
    evaluator = load_evaluator(cfg)
    stream = evaluator.stream
    run.require_data(stream.describe())
    if not scales and not all(len(task.validation) for task in stream.tasks):
        raise UserError(
            "lambda=select chooses on validation data, cut from the training data; this run has none. Train it with "
            "stream.validation=0.1, and merge with the same"
        )
    total = 1 if joint else len(stream)
    base_file = run.base_file()
    merging_device = evaluator.device if cfg.accelerator == "gpu" else torch.device("cpu")
    merged_of = task_vectors_of(run, strategy, options, total, base_file, merging_device)
    zero_shot = zero_shot_counts(trained)  # of the same θ₀ on the same images
    base = files.read_tensors(base_file)
    timing = {"setup": time.monotonic() - began, "merging": 0.0, "evaluation": 0.0}

    tried: dict[float, float] = {}
    if not scales:
        started = time.monotonic()
        tau, _ = merged_of(total)
        for value in sorted(float(candidate) for candidate in cfg.candidates):
            counts = evaluator.counts(apply(base, tau, value), len(stream), "validation")
            tried[value] = sum(counts["agnostic"]) / sum(counts["total"])
        timing["selection"] = time.monotonic() - started
        scales = [max(tried, key=lambda value: tried[value])]  # the first, so the smallest, of equals
    rows: dict[float, list[Counts]] = {scale: [] for scale in scales}
    seen: list[int] = []
    for count in range(1, total + 1) if cfg.prefixes else [total]:  # the last is the merge of all tasks
        started = time.monotonic()
        tau, inputs = merged_of(count)
        timing["merging"] += time.monotonic() - started
        started = time.monotonic()
        seen.append(len(stream) if joint else count)
        for scale in scales:
            rows[scale].append(evaluator.counts(apply(base, tau, scale), seen[-1]))
        timing["evaluation"] += time.monotonic() - started
    timing["total"] = time.monotonic() - began
    for scale, folder in zip(scales, folders, strict=True):
        with held(folder):
            files.remove_partials(folder)
            theta = apply(base, tau, scale)
            write_merged(folder / "merged.safetensors", theta, strategy, scale, options, inputs)
            metrics = assemble("merge", cfg, zero_shot, rows[scale], seen, timing)
            # Of the training, the command names what it must; the record holds what it was made with.
            metrics["config"] |= {k: v for k, v in trained["config"].items() if k not in _OF_THE_MERGE}
            metrics["merge"] = describe(strategy, scale, options, cfg.seed, tried)
            metrics["provenance"] |= {key: trained["provenance"][key] for key in ("base_sha256", "data_sha256")}
            if cfg.export is not None:
                _export(evaluator.clip, theta, cfg.export, folder)
            files.write_json(folder / "metrics.json", metrics)
        _show(trained, folder, metrics)


def _is_done(cfg: DictConfig, run: Run, folder: Path) -> bool:
    """Whether what `cfg` asks for is there, as it was written, made from the encoders that the run has now."""
    metrics, merged = folder / "metrics.json", folder / "merged.safetensors"
    if not metrics.is_file() or not merged.is_file():
        return False
    try:
        made = files.read_json(metrics, "config", own=True)["config"]
        files.verify(merged)
    except UserError as error:
        print(f"{error}; merging again")
        return False
    enough = made.get("prefixes") or not cfg.prefixes  # who has every prefix has the merge of all tasks
    same = cfg["lambda"] != SELECT or made.get("candidates") == cfg.candidates
    return enough and same and metrics.stat().st_mtime_ns > run.metrics.stat().st_mtime_ns


def task_vectors_of(
    run: Run, strategy: Strategy, options: dict[str, Any], total: int, base: Path, device: torch.device
) -> Callable[[int], tuple[dict[str, Tensor], list[str]]]:
    """count → merged task vector of the first `count` encoders of `run`, and hashes of what went in, θ₀ first.

    Raises:
        UserError: if encoders are missing, and no running merge stands in for them.
    """
    running = run.running(strategy.name)
    if run.keeps_tasks() or not running.is_file():
        encoders, parameters = run.trained_encoders(total), run.base()["clip_parameters"]
        return lambda count: merged_task_vector(
            base, encoders[:count], strategy, options, clip_parameters=parameters, device=device
        )
    kept = RunningMerge(running, strategy, options)
    if kept.tasks != total:
        raise UserError(f"{readable(running)} holds {kept.tasks} tasks of {total}; delete the run and train it again")

    def of(count: int) -> tuple[dict[str, Tensor], list[str]]:
        if count < total:
            raise UserError("prefixes=true needs every encoder; this run was trained with keep_tasks=false")
        return kept.task_vector()

    return of


def apply(base: Mapping[str, Tensor], tau: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """θ₀ + λ · τ, to the bit as `merge_checkpoints` computes it."""
    return {name: (scale * tau[name]).add_(theta.float()).to(theta.dtype) for name, theta in base.items()}


def write_merged(
    path: Path,
    theta: Mapping[str, Tensor],
    strategy: Strategy,
    scale: float,
    options: Mapping[str, Any],
    inputs: Sequence[str],
) -> None:
    """The merged encoder of a run, with a record of what it was made of."""
    metadata = {
        "format": "pt",
        "strategy": strategy.name,
        "scale": repr(scale),
        "options": json.dumps(dict(options), sort_keys=True),
        "version": __version__,
        "inputs": json.dumps(list(inputs)),
    }
    files.write_tensors(path, theta, metadata)


def describe(
    strategy: Strategy, scale: float, options: dict[str, Any], seed: int, tried: Mapping[float, float]
) -> dict[str, Any]:
    """The part of a merge's metrics.json that says how it was made; `tried` are validation accuracies by λ."""
    result: dict[str, Any] = {"strategy": strategy.name, "scale": scale, "options": options}
    result["changed"] = _changed(strategy, options, seed)
    if tried:
        result["selected_on"] = "validation"
        result["validation"] = [{"lambda": value, "accuracy": accuracy} for value, accuracy in tried.items()]
    return result


def merge_id(strategy: Strategy, scale: float | str, options: dict[str, Any], seed: int) -> str:
    """Folder of a merge: ``magmax-0.5``; options that differ from the defaults come in between.

    The default of an option `seed` is the run's own.
    """
    changed = [f"{key}={value}" for key, value in sorted(_changed(strategy, options, seed).items())]
    return "-".join([strategy.name, *changed, scale if isinstance(scale, str) else f"{scale:.12g}"])


def _changed(strategy: Strategy, options: dict[str, Any], seed: int) -> dict[str, Any]:
    defaults = {**strategy.defaults(), "seed": seed}
    return {key: value for key, value in options.items() if value != defaults[key]}


def _typed_of_training() -> list[tuple[str, str]]:
    """(key, override) of everything on the command line that is not about the merge itself."""
    return [(key, word) for key, word in typed() if key.split(".")[0] not in MERGE_KEYS]


def _export(clip: Clip, theta: Mapping[str, Tensor], form: str, out: Path) -> None:
    print(f"exported to {readable(export(clip, theta, form, out))}")


def _show(trained: dict[str, Any], folder: Path, metrics: dict[str, Any]) -> None:
    columns = ["", "overall", "average", "forgetting", "seconds"]
    rows = []
    merged = metrics["merge"]
    label = f"{metrics['config']['method']['id']} + {merged['strategy']}, λ = {merged['scale']:g}"
    if "selected_on" in merged:
        label += " (chosen on validation data)"
    for name, result in ((metrics["config"]["method"]["id"], trained), (label, metrics)):
        summary = result["summary"]
        values = [summary["final_accuracy"], summary["average_accuracy"], summary["forgetting"]]
        rows.append([name, *values, result["timing"].get("merging", result["timing"].get("training"))])
    zero_shot = metrics["zero_shot"]
    average = sum(zero_shot["task_agnostic"]) / len(zero_shot["task_agnostic"])
    tables.table("merged", columns, [["zero-shot", zero_shot["overall"], average, None, None], *rows])
    print(f"results in {readable(folder)}")
