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
from mergestream.metrics import Counts, row, summarize

SCHEMA_VERSION = 1
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "open_clip_torch", "torchmetrics", "hydra-core", "numpy")


class Accuracies(TypedDict):
    """Accuracy on each task, and over all test samples, as fractions."""

    task_agnostic: list[float]
    task_aware: list[float]
    overall: float


class Matrices(TypedDict):
    """Accuracy matrices: row i is after task i, column j is task j."""

    task_agnostic: list[list[float]]
    task_aware: list[list[float]]


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
    overall: list[float]
    seen: list[float | None]
    test_samples: list[int]
    summary: dict[str, float]
    timing: dict[str, float]
    environment: Environment
    git: dict[str, Any] | None
    provenance: dict[str, Any]
    method: NotRequired[dict[str, Any]]  # of a training
    spikes: NotRequired[dict[str, list[int]]]  # of a training, for each task
    merge: NotRequired[dict[str, Any]]  # of a merge


class TaskRecord(Counts):
    """The content of evaluation.json: what is known of a finished task.

    `files` maps the names of the task's files to their checksums.
    """

    files: dict[str, str]
    spikes: dict[str, int]
    seconds: dict[str, float]
    dropped: NotRequired[bool]


def assemble(
    kind: Literal["train", "merge"],
    config: Mapping[str, Any],
    zero_shot: Counts,
    rows: Sequence[Counts],
    seen: Sequence[int],
    timing: Mapping[str, float],
    devices: int = 1,
) -> Metrics:
    """Return the content of metrics.json.

    Args:
        kind: train or merge.
        config: the resolved config.
        zero_shot: counts of θ₀ (see `TaskAccuracy`).
        rows: counts after each task, or of each merge.
        seen: how many tasks each row has been trained on.
        timing: seconds by stage.
        devices: processes that took part.
    """
    base = row(zero_shot, 0)
    table = [row(counts, n) for counts, n in zip(rows, seen, strict=True)] or [base]
    agnostic = [r.task_agnostic for r in table]
    # An average over the stream needs a row for each of its steps; joint training and a single merge have one row.
    whole = list(seen) == list(range(1, len(base.task_agnostic) + 1))
    incremental = [r.seen for r in table if r.seen is not None]
    summary = {
        "final_accuracy": table[-1].overall,
        "average_incremental_accuracy": float(np.mean(incremental)) if whole else float("nan"),
        **summarize(agnostic, base.task_agnostic),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "config": dict(config),
        "zero_shot": {"task_agnostic": base.task_agnostic, "task_aware": base.task_aware, "overall": base.overall},
        "accuracy": {"task_agnostic": agnostic, "task_aware": [r.task_aware for r in table]},
        "overall": [r.overall for r in table],
        "seen": [r.seen for r in table],
        "test_samples": zero_shot["total"],
        "summary": summary,
        "timing": {name: round(seconds, 3) for name, seconds in timing.items()},
        "environment": environment(devices),
        "git": git_state(),
        "provenance": {"command": " ".join(sys.argv), "precision": config["precision"], "finished": now()},
    }


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
    }


def circumstances(devices: int) -> dict[str, Any]:
    """Return the circumstances in which a run starts; it may be continued elsewhere."""
    command = " ".join(sys.argv)
    return {"at": now(), "command": command, "environment": environment(devices), "git": git_state()}


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
