"""metrics.json: what a training run or a merge reports, and under which circumstances it was measured."""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from mergestream import __version__
from mergestream.metrics import row, summarize

SCHEMA_VERSION = 1
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "open_clip_torch", "torchmetrics", "hydra-core", "numpy")

Counts = dict[str, list[int]]


def assemble(
    kind: str,
    cfg: DictConfig,
    zero_shot: Counts,
    rows: Sequence[Counts],
    seen: Sequence[int],
    timing: dict[str, float],
    devices: int = 1,
) -> dict[str, Any]:
    """The content of metrics.json; all accuracies are fractions in [0, 1].

    Args:
        kind: train or merge.
        cfg: the resolved config.
        zero_shot: counts of θ₀ (see `TaskAccuracy`).
        rows: counts after each task, or of each merge.
        seen: how many tasks each row has been trained on.
        timing: seconds by stage.
        devices: processes that took part.
    """
    base = row(zero_shot, 0)
    table = [row(counts, n) for counts, n in zip(rows, seen, strict=True)] or [base]
    agnostic = [r.task_agnostic for r in table]
    # An average over the stream needs a row for every step of it; joint training and a single merge have one.
    whole = list(seen) == list(range(1, len(base.task_agnostic) + 1))
    summary = {
        "final_accuracy": table[-1].overall,
        "average_incremental_accuracy": float(np.mean([r.seen for r in table])) if whole else float("nan"),
        **summarize(agnostic, base.task_agnostic),
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": kind,
        "config": OmegaConf.to_container(cfg, resolve=True),
        "zero_shot": {"task_agnostic": base.task_agnostic, "task_aware": base.task_aware, "overall": base.overall},
        "accuracy": {"task_agnostic": agnostic, "task_aware": [r.task_aware for r in table]},
        "overall": [r.overall for r in table],
        "seen": [r.seen for r in table],
        "test_samples": zero_shot["total"],
        "summary": summary,
        "timing": {name: round(seconds, 3) for name, seconds in timing.items()},
        "environment": environment(devices),
        "git": git_state(),
        "provenance": {"command": " ".join(sys.argv), "precision": cfg.precision, "finished": now()},
    }


def zero_shot_counts(metrics: Mapping[str, Any]) -> Counts:
    """The counts of θ₀ (see `TaskAccuracy`) that the fractions of a metrics.json come from."""
    total, found = metrics["test_samples"], metrics["zero_shot"]

    def correct(fractions: Sequence[float | None]) -> list[int]:  # None where a task has no test images
        return [round((fraction or 0) * n) for fraction, n in zip(fractions, total, strict=True)]

    counts = {"agnostic": correct(found["task_agnostic"]), "aware": correct(found["task_aware"])}
    return {"total": total, **counts, "seen_correct": [0] * len(total)}


def circumstances(devices: int) -> dict[str, Any]:
    """Under which a run is begun: a later session may continue it elsewhere."""
    command = " ".join(sys.argv)
    return {"at": now(), "command": command, "environment": environment(devices), "git": git_state()}


def now() -> str:
    """The time, as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def environment(devices: int) -> dict[str, Any]:
    """Versions and devices of this process."""
    import torch  # a report reads results without it

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
    """The processor's name."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def git_state() -> dict[str, Any] | None:
    """Commit of the checkout that this package runs from, and whether it has uncommitted changes; None outside one."""

    def git(*arguments: str) -> str:
        folder = Path(__file__).parent
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout

    try:
        return {"commit": git("rev-parse", "HEAD").strip(), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
