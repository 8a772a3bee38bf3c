"""Merge a finished run and evaluate the result, or merge files that this project did not make."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mergestream import display, files
from mergestream.checks import check_scale, check_stream
from mergestream.compose import build, load_clip, load_stream, local_device
from mergestream.errors import UserError
from mergestream.evaluation import evaluate
from mergestream.merging.engine import merge_checkpoints
from mergestream.models.clip import text_head
from mergestream.results import assemble
from mergestream.runs import Run, readable
from mergestream.strategies.strategy import Strategy


def merge(cfg: DictConfig) -> None:
    """Merge what the config names: ``checkpoints`` onto ``base`` into ``out``, or the run of the same config values.

    Raises:
        UserError: if the config, the run or a file is not what it must be.
    """
    OmegaConf.resolve(cfg)
    check_scale(cfg["lambda"])
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
    merge_run(cfg, Run.of(cfg), strategy, scale, options)


def bound_strategy(cfg: DictConfig) -> tuple[Strategy, dict[str, Any]]:
    """The strategy of the ``strategy`` group, and all of its options."""
    bound: partial[Any] = build(cfg.strategy, without=("scale",))
    strategy: Any = bound.func
    return strategy, strategy.check(bound.keywords)


def merge_run(cfg: DictConfig, run: Run, strategy: Strategy, scale: float, options: dict[str, Any]) -> None:
    """Merge the encoders of `run`, evaluate, and write both below its ``merges`` folder."""
    run.require_finished()
    typed = [word.lstrip("+").split("=")[0] for word in HydraConfig.get().overrides.task]
    run.require_same(cfg, ["dataset", "stream", "model", "method", "tasks", "seed", *typed])
    encoders = run.encoders()
    if not encoders:
        raise UserError(f"a merge needs trained encoders; method={cfg.method.id} trains none. Try method=seq.")
    base_info = files.read_json(run.path / "base.json")
    base = Path(cfg.root) / "_base" / f"{base_info['sha256']}.safetensors"

    began = time.monotonic()
    clip = load_clip(cfg)
    stream = load_stream(cfg, clip.transforms)
    device = local_device(cfg.accelerator)
    clip.model.to(device)
    head = text_head(clip, stream.source.class_names, stream.source.templates)
    zero_shot = evaluate(clip.encoder, head, stream, seen=0, device=device)
    timing = {"setup": time.monotonic() - began, "merging": 0.0, "evaluation": 0.0}

    folder = run.path / "merges" / merge_id(strategy, scale, options, cfg.seed)
    counts = list(range(1, len(encoders) + 1)) if cfg.prefixes else [len(encoders)]
    joint = len(encoders) < len(stream)
    rows, seen = [], []
    with files.whole(folder / "merged.safetensors") as out:
        for count in counts:  # the last is the merge of all tasks: the one that stays
            started = time.monotonic()
            frozen = {"clip_parameters": base_info["clip_parameters"]}
            merge_checkpoints(base, encoders[:count], strategy, out, scale=scale, **frozen, **options)
            merged = time.monotonic()
            clip.encoder.load_state_dict(files.read_tensors(out))
            seen.append(len(stream) if joint else count)
            rows.append(evaluate(clip.encoder, head, stream, seen=seen[-1], device=device))
            timing["merging"] += merged - started
            timing["evaluation"] += time.monotonic() - merged
    timing["total"] = time.monotonic() - began
    metrics = assemble("merge", cfg, zero_shot, rows, seen, timing)
    metrics["merge"] = {"strategy": strategy.name, "scale": scale, "options": options}
    files.write_json(folder / "metrics.json", metrics)
    _show(run, folder, metrics)


def merge_id(strategy: Strategy, scale: float, options: dict[str, Any], seed: int) -> str:
    """Folder of a merge: ``magmax-0.5``; options that differ from the defaults come in between.

    The default of an option `seed` is the run's own.
    """
    defaults = {**strategy.defaults(), "seed": seed}
    changed = [f"{key}={value}" for key, value in sorted(options.items()) if value != defaults[key]]
    return "-".join([strategy.name, *changed, f"{scale:g}"])


def _show(run: Run, folder: Path, metrics: dict[str, Any]) -> None:
    trained = files.read_json(run.metrics)
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
