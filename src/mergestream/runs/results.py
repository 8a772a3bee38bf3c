"""metrics.json: the results of a training or a merge, and the circumstances of the measurement."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
from typing_extensions import NotRequired

from mergestream import __version__
from mergestream.metrics import Counts, Row, across_domains, row, summarize

SCHEMA_VERSION = 1
COUNTED = ("total", "agnostic", "aware", "seen_correct")  # the `Counts` that records of every version have
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "open_clip_torch", "torchmetrics", "hydra-core", "numpy")


class Accuracies(TypedDict):
    """Accuracy on each task, and over all test samples, as fractions; correct predictions of each class."""

    task_agnostic: list[float]
    task_aware: list[float]
    overall: float
    macro: NotRequired[float | None]
    class_correct: NotRequired[list[int] | None]


class Matrices(TypedDict):
    """Accuracy matrices: row i is after task i, column j is task j; None where the run was not evaluated."""

    task_agnostic: list[list[float] | None]
    task_aware: list[list[float] | None]


class PerClass(TypedDict):
    """Test samples of each class, what the last row has right of them, and the `ClassMeans` of every row.

    None is what a version that did not count classes has left out.
    """

    total: list[int] | None
    correct: list[int] | None
    macro: list[float | None]
    seen: list[float | None]
    unseen: list[float | None]
    harmonic: list[float | None]


class Environment(TypedDict):
    """Versions and devices of the process that wrote a file."""

    mergestream: str
    python: str
    platform: str
    packages: dict[str, str]
    processes: int
    cpu: str
    gpus: list[str]
    threads: int


class Metrics(TypedDict):
    """The content of metrics.json; all accuracies are fractions in [0, 1]."""

    schema_version: int
    kind: Literal["train", "merge"]
    config: dict[str, Any]
    zero_shot: Accuracies
    accuracy: Matrices
    overall: list[float | None]
    seen: list[float | None]
    test_samples: list[int]
    per_class: NotRequired[PerClass]
    summary: dict[str, float]
    timing: dict[str, float]
    environment: Environment
    git: dict[str, Any] | None
    provenance: dict[str, Any]
    method: NotRequired[dict[str, Any]]  # of a training
    spikes: NotRequired[dict[str, list[int]]]  # of a training, for each task
    merge: NotRequired[dict[str, Any]]  # of a merge
    calibration: NotRequired[dict[str, Any]]  # of a merge by merge.py


class TaskRecord(Counts):
    """The content of evaluation.json: what is known of a finished task. The counts are None if it was not evaluated.

    `files` maps the names of the task's files to their checksums. `data_sha256` is of the data of the evaluation, if
    tasks can be added.
    """

    files: dict[str, str]
    spikes: dict[str, int]
    seconds: dict[str, float]
    dropped: NotRequired[bool]
    data_sha256: NotRequired[str]


def assemble(
    kind: Literal["train", "merge"],
    config: Mapping[str, Any],
    zero_shot: Counts,
    rows: Sequence[Counts | None],
    seen: Sequence[int],
    timing: Mapping[str, float],
    devices: int = 1,
    heads: Sequence[Sequence[int]] = (),
) -> Metrics:
    """Return the content of metrics.json.

    Args:
        kind: train or merge.
        config: the resolved config.
        zero_shot: counts of θ₀ (see `TaskAccuracy`).
        rows: counts after each task, or of each merge; None where it was not evaluated, but never in the end.
        seen: how many tasks each row has been trained on.
        timing: seconds by stage.
        devices: processes that took part.
        heads: class ids of each task; without them, there are no means over classes.
    """
    precisions = {key: config[key] for key in ("precision", "eval_precision")}
    base = row(zero_shot, 0, heads)
    found = [row(counts, n, heads) if counts else None for counts, n in zip(rows, seen, strict=True)]
    table: list[Row | None] = found or [base]
    measured = [r for r in table if r is not None]
    # An average over the stream needs a row for each of its steps; joint training and a single merge have one row.
    whole = list(seen) == list(range(1, len(base.task_agnostic) + 1)) and len(measured) == len(table)
    incremental = [float("nan") if r.seen is None else r.seen for r in measured]
    agnostic = [r.task_agnostic for r in measured if len(measured) == len(table) or r is table[-1]]
    summary = {
        "final_accuracy": measured[-1].overall,
        "average_incremental_accuracy": float(np.mean(incremental)) if whole else float("nan"),
        **summarize(agnostic, base.task_agnostic),
        **_class_summary(table, whole),
    }
    if config["stream"]["name"] == "dataset" and whole and len(measured) > 1:
        aware = across_domains([r.task_aware for r in measured])
        summary |= {f"mtil_{name}": value for name, value in aware.items()}
        summary |= {f"xtail_{name}": value for name, value in across_domains(agnostic).items()}
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "config": dict(config),
        "zero_shot": _zero_shot(base, zero_shot),
        "accuracy": {
            "task_agnostic": [None if r is None else r.task_agnostic for r in table],
            "task_aware": [None if r is None else r.task_aware for r in table],
        },
        "overall": [None if r is None else r.overall for r in table],
        "seen": [None if r is None else r.seen for r in table],
        "test_samples": zero_shot["total"],
        "per_class": _per_class(zero_shot, rows, table),
        "summary": summary,
        "timing": {name: round(seconds, 3) for name, seconds in timing.items()},
        "environment": environment(devices),
        "git": git_state(),
        "provenance": {"command": " ".join(sys.argv), **precisions, "finished": now()},
    }


def _zero_shot(base: Row, counts: Counts) -> Accuracies:
    """Return what is known of θ₀: its row, and the counts of each class."""
    return {
        "task_agnostic": base.task_agnostic,
        "task_aware": base.task_aware,
        "overall": base.overall,
        "macro": base.classes.macro if base.classes else None,
        "class_correct": counts.get("class_correct"),
    }


def _per_class(zero_shot: Counts, rows: Sequence[Counts | None], table: Sequence[Row | None]) -> PerClass:
    """Return what is known of single classes: the counts of the last row, and the means of every row."""
    last = rows[-1] if rows else zero_shot
    return {
        "total": last.get("class_total") if last else None,
        "correct": last.get("class_correct") if last else None,
        "macro": _means(table, "macro"),
        "seen": _means(table, "seen"),
        "unseen": _means(table, "unseen"),
        "harmonic": _means(table, "harmonic"),
    }


def _means(table: Sequence[Row | None], name: str) -> list[float | None]:
    """Return one of the `ClassMeans` of every row; None where it is not known."""
    return [None if r is None or r.classes is None else getattr(r.classes, name) for r in table]


def _class_summary(table: Sequence[Row | None], whole: bool) -> dict[str, float]:
    """Return the macro accuracy of the last row, and the averages of `ClassMeans` over the steps with unseen classes.

    Args:
        table: the rows.
        whole: whether there is one after each task.
    """
    last = _means(table, "macro")[-1]
    summary = {"macro_accuracy": float("nan") if last is None else last}
    steps = table[:-1] if whole else []  # after the last task, no class is unseen
    for key, name in (("seen_classes", "seen"), ("unseen_classes", "unseen"), ("harmonic_mean", "harmonic")):
        values = _means(steps, name)
        known = [value for value in values if value is not None]
        summary[key] = float(np.mean(known)) if known and len(known) == len(values) else float("nan")
    return summary


def counts_of(record: Mapping[str, Any]) -> Counts | None:
    """Return the counts in a record; None if it was not evaluated. An older version has not counted classes."""
    if record["total"] is None:
        return None
    return {key: record.get(key) for key in Counts.__annotations__}  # type: ignore[return-value]


def zero_shot_counts(metrics: Metrics) -> Counts:
    """Return the counts of θ₀ (see `TaskAccuracy`) behind the fractions of a metrics.json."""
    total, found = metrics["test_samples"], metrics["zero_shot"]

    def correct(fractions: Sequence[float | None]) -> list[int]:  # None where a task has no test images
        return [round((fraction or 0) * n) for fraction, n in zip(fractions, total, strict=True)]

    return {
        "total": total,
        "agnostic": correct(found["task_agnostic"]),
        "aware": correct(found["task_aware"]),
        "seen_correct": [0] * len(total),
        "class_total": metrics.get("per_class", {}).get("total"),
        "class_correct": found.get("class_correct"),
    }


def circumstances(devices: int, precision: str) -> dict[str, Any]:
    """Return the circumstances in which a run starts; it may be continued elsewhere.

    Args:
        devices: processes that take part.
        precision: in which they train.
    """
    command = " ".join(sys.argv)
    place = {"environment": environment(devices), "precision": precision, "git": git_state()}
    return {"at": now(), "command": command, **place}


def now() -> str:
    """Return the current time as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment(devices: int) -> Environment:
    """Return versions and devices of this process, one of `devices`."""
    import torch  # takes seconds, and a report needs none

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "mergestream": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "processes": devices,
        "cpu": cpu(),
        "gpus": gpus,
        "threads": torch.get_num_threads(),
    }


def cpu() -> str:
    """Return the name of the processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state() -> dict[str, Any] | None:
    """Return the commit of the checkout that this package runs from, and whether it has uncommitted changes.

    None if git does not track this file: an installed package may lie inside somebody else's repository.
    """
    file = Path(__file__)

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=file.parent, capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", file.name)
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
