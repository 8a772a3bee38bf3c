"""Reads the encoder of a run that a command means, and checks that it is what the run wrote."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mergestream.compose.encoder import EncoderSettings
from mergestream.compose.keys import BASE, LAST, MERGE_OF_ALL
from mergestream.merging.encoder import read_encoder
from mergestream.runs.directory import Run, readable
from mergestream.runtime import files, processes
from mergestream.runtime.errors import UserError


@dataclass(frozen=True)
class Chosen:
    """An encoder of a run.

    Args:
        name: for people: ``θ₀``, ``encoder of task 2``, or the merge's folder, such as ``magmax-0.5``.
        path: its file.
        base: the file of θ₀.
        sha256: the checksum of the file.
        seen: how many tasks it has seen.
        metrics: what is known of a merge, its metrics.json; empty for θ₀ and the encoder of a task.
        num_classes: how many classes the run had when it finished last; those of later tasks come later.
    """

    name: str
    path: Path
    base: Path
    sha256: str
    seen: int
    metrics: Mapping[str, Any]
    num_classes: int

    def weights(self) -> dict[str, Tensor]:
        """Return its weights."""
        return read_encoder(self.path, self.base)


def chosen_encoder(settings: EncoderSettings) -> Chosen:
    """Check and return the encoder that `settings` name; its weights are not read yet.

    While a task that has arrived is being trained, it is one of those that the run finished with before.

    Raises:
        UserError: if the run is missing, unfinished or has another config, or the encoder is missing or was altered;
            says what to type.
    """
    run = settings.run
    tasks = _finished_tasks(run)
    num_classes = 1 + max(c for task in run.stream()["tasks"][:tasks] for c in task["classes"])
    run.require_same(settings.config, settings.compared)
    untrained = settings.method.data == "none"
    if settings.encoder == BASE or (untrained and settings.encoder == LAST):
        path = run.base_file()
        return Chosen("θ₀", path, path, path.stem, 0, {}, num_classes)
    if untrained:
        raise UserError(
            f"encoder={settings.encoder} needs trained encoders; method={settings.method.id} trains none. Write "
            f"encoder={BASE}"
        )
    of = _merge if settings.encoder == MERGE_OF_ALL else _of_task
    return of(settings, tasks, num_classes)


def _finished_tasks(run: Run) -> int:
    """Return with how many tasks a run has finished; says so if others have arrived since."""
    if run.finished() or not (run.grows and run.metrics.is_file()):
        run.require_finished()
        return len(run.stream()["tasks"])
    finished = len(run.result()["test_samples"])
    names = [task["name"] for task in run.stream()["tasks"][finished:]]
    processes.say(f"using the first {finished} tasks of {readable(run.path)}; not merged yet: {', '.join(names)}")
    return finished


def _of_task(settings: EncoderSettings, tasks: int, num_classes: int) -> Chosen:
    run, joint = settings.run, settings.method.data == "all"
    trained = 1 if joint else tasks
    task = trained if settings.encoder == LAST else settings.encoder
    assert isinstance(task, int)
    if task > trained:
        raise UserError(
            f"encoder must be {MERGE_OF_ALL}, {BASE}, {LAST}, or a task of the run, from 1 to {trained}; got "
            f"encoder={task}"
        )
    if not run.encoder(task - 1).is_file() and not run.keeps_tasks():
        raise UserError(
            f"{readable(run.path)} was trained with keep_tasks=false, so the encoder of task {task} is gone; got "
            f"encoder={task}. Write encoder={trained} or encoder={MERGE_OF_ALL}"
        )
    path = run.trained_encoder(task - 1)
    seen = tasks if joint else task
    return Chosen(f"encoder of task {task}", path, run.base_file(), files.verify(path), seen, {}, num_classes)


def _merge(settings: EncoderSettings, tasks: int, num_classes: int) -> Chosen:
    run, folder = settings.run, settings.merge
    path, advice = folder / "merged.safetensors", f"Type: {settings.merge_command}"
    if not path.is_file() or not (folder / "metrics.json").is_file():
        raise UserError(f"a merge is needed; {readable(folder)} does not exist or is not whole. {advice}")
    try:
        checksum = files.verify(path)
        metrics = files.read_json(folder / "metrics.json", "merge", "provenance", "test_samples", own=True)
    except UserError as error:
        raise UserError(f"{error}. {advice}") from error
    trained = run.result()["provenance"]
    same = all(metrics["provenance"].get(key) == trained.get(key) for key in ("base_sha256", "data_sha256"))
    if not same or _is_older(settings, path):
        raise UserError(f"a merge must be of the encoders of its run; {readable(folder)} is of earlier ones. {advice}")
    return Chosen(folder.name, path, run.base_file(), checksum, tasks, metrics, num_classes)


def _is_older(settings: EncoderSettings, merged: Path) -> bool:
    """Return whether the run was trained again after a merge; merge.py would then merge again, too."""
    run = settings.run

    def when(path: Path) -> int:
        return path.stat().st_mtime_ns

    # merge_every_task writes the merge last but one, before the metrics of the run.
    trained_later = any(when(encoder) > when(merged) for encoder in run.encoders())
    return trained_later and when(merged.with_name("metrics.json")) < when(run.metrics)
