"""Runs and results without training: encoders from given task vectors, the metrics.json of a run, and report lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from helpers import config
from torch import Tensor

from mergestream.analysis.subject import Subject
from mergestream.compose.inputs import Inputs
from mergestream.compose.run import recorded, run_of
from mergestream.reporting.rows import MEASURES, label
from mergestream.runs.directory import Run, store_base
from mergestream.runtime import files

LINE = {"dataset": "digits", "stream": "class", "tasks": 2, "model": "tiny", "method": "seq", "strategy": ""}
LINE |= {"options": "", "scale": "", "tag": ""}
# The weights of a made-up encoder: three parameters in a block, two outside.
INSIDE, OUTSIDE = "transformer.resblocks.1.mlp.c_fc.weight", "proj"
TAUS = [
    [3.0, -1.0, 0.0, 2.0, 5.0],
    [-3.0, -2.0, 0.0, 1.0, 4.0],
    [1.0, -4.0, 0.0, -2.0, 6.0],
]


def encoder(values: Sequence[float]) -> dict[str, Tensor]:
    """Return five values as the weights of an encoder."""
    flat = torch.tensor(values, dtype=torch.float32)
    return {INSIDE: flat[:3].clone(), OUTSIDE: flat[3:].clone()}


def run(root: Path, taus: Sequence[Sequence[float]], *overrides: str) -> Run:
    """Write a finished run of train.py whose encoders are a θ₀ of ones plus task vectors.

    Args:
        root: the root.
        taus: five values for each encoder.
        overrides: of train.yaml.
    """
    cfg = config("train", f"root={root}", f"tasks={len(taus)}", *overrides)
    made = run_of(cfg)
    _, sha256 = store_base(root, encoder([1.0] * 5))
    tasks = [{"name": f"task {t + 1}"} for t in range(cfg.tasks)]
    files.write_json(made.path / "base.json", {"sha256": sha256, "clip_parameters": 5, "begun": {}})
    files.write_json(made.path / "stream.json", {"num_classes": 1, "class_order": [0], "tasks": tasks})
    made.claim(recorded(cfg))
    counts = {key: [1] for key in ("total", "agnostic", "aware", "seen_correct")}
    for t, tau in enumerate(taus):
        weights = encoder([1 + value for value in tau])
        checksum = files.write_tensors(made.encoder(t), weights, {"base_sha256": sha256})
        record = {**counts, "files": {made.encoder(t).name: checksum}, "spikes": {}, "seconds": {}}
        files.write_json(made.evaluation(t), record)
    files.write_json(made.metrics, {})
    return made


def subject_of(root: Path, taus: Sequence[Sequence[float]], *overrides: str) -> Subject:
    """Return a made-up run as the subject of an analysis."""
    return Subject(run(root, taus, *overrides), Inputs(config("analyze", *overrides)))


def line(**values: Any) -> dict[str, Any]:
    """Return a line of `Collected.runs` with its name."""
    result = {
        **LINE,
        "seed": 1,
        "seconds": 1.0,
        "protocol": "",
        "data": "",
        "source": "",
        "path": "",
        "retention_on": "",
    }
    result |= {**dict.fromkeys(MEASURES, float("nan")), "trained_tasks": values.get("tasks", 2), **values}
    return {**result, "name": label(result)}


def write(
    root: Path,
    method: str = "seq",
    seed: int = 1,
    accuracy: float = 0.5,
    strategy: str | None = None,
    scale: float = 0.5,
    tasks: int = 2,
    **changes: Any,
) -> Path:
    """Write the metrics.json of a training, or of a merge if a strategy is given, and return its folder."""
    config = {"dataset": {"name": "digits"}, "stream": {"name": "class"}, "model": {"name": "tiny"}, "tasks": tasks}
    config |= {"method": {"id": method}, "seed": seed, "tag": None, "root": f"somewhere/{seed}", **changes}
    config["candidates"] = [0.5]
    row = [accuracy] * tasks
    rows = [[accuracy + 0.01 * i] * tasks for i in range(tasks)]
    content = {
        "schema_version": 1,
        "kind": "merge" if strategy else "train",
        "config": config,
        "zero_shot": {"task_agnostic": row, "task_aware": row, "overall": accuracy},
        "accuracy": {"task_agnostic": rows, "task_aware": rows},
        "overall": [r[0] for r in rows],
        "seen": [r[0] for r in rows],
        "summary": {"final_accuracy": accuracy, "forgetting": 0.1},
        "timing": {"total": 2.0},
        "provenance": {"base_sha256": "a"},
        "environment": {"mergestream": "0"},
    }
    folder = root / f"digits/class-{tasks}/tiny/{method}/seed-{seed}"
    if strategy:
        content["merge"] = {"strategy": strategy, "scale": scale, "options": {}, "changed": {}}
        folder = folder / f"merges/{strategy}-{scale}"
    files.write_json(folder / "metrics.json", content)
    return folder
