"""Damage to a run directory: found before anything of it is used, and repaired where ``repair=true`` says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergestream import files
from mergestream.errors import UserError
from mergestream.runs import Run, base_path, readable


@dataclass(frozen=True)
class Damage:
    """A file that is not what the run wrote.

    Args:
        path: the file.
        reason: what is wrong with it, naming it.
        task: that it belongs to; None for what belongs to the whole run.
    """

    path: Path
    reason: str
    task: int | None = None


def damage(run: Run) -> list[Damage]:
    """Everything in a run directory that is missing or not as it was written; each file is read once."""
    return list(_damage(run)) if run.begun() else []


def _damage(run: Run) -> Iterator[Damage]:
    def unsound(path: Path, read: Callable[[], Any], task: int | None = None) -> Iterator[Damage]:
        try:
            read()
        except UserError as error:
            yield Damage(path, str(error).removesuffix(f". {run.advice}"), task)

    yield from unsound(run.path / "config.yaml", run.config)
    yield from unsound(run.path / "stream.json", run.stream)
    base = list(unsound(run.path / "base.json", run.base))
    yield from base or unsound(base_path(run.root, run.base()["sha256"]), run.base_file)
    trained = 0
    if run.finished():
        found = list(unsound(run.metrics, lambda: run.read(run.metrics, "spikes")))
        yield from found
        trained = 0 if found else len(run.read(run.metrics)["spikes"]["loss"])
    # A task is finished if it was evaluated, and so is every task before it.
    folders = [index for index, _ in run.tasks()]
    finished = max([trained, *(index + 1 for index in folders if run.evaluation(index).exists())])
    for index in range(finished):
        yield from _of_task(run, index, last=index + 1 == finished)
    for index in folders:
        path = run.checkpoint(index)
        if path.exists() and index >= finished:
            yield from unsound(path, lambda path=path: files.verify(path), index)  # type: ignore[misc]
    yield from _of_running_merge(run, finished)


def _of_running_merge(run: Run, finished: int) -> Iterator[Damage]:
    merges, rows = _running(run), _rows(run)
    for path in merges:
        try:
            files.verify(path)
        except UserError as error:
            yield Damage(path, str(error))
    for name in sorted({path.name for path in rows}):
        known = [index for index, folder in run.tasks() if folder / name in rows]
        if gaps := sorted(set(range(max(known) + 1)) - set(known)):
            path = run.task(gaps[0]) / name
            yield Damage(path, f"{readable(path)} is missing")
    if rows and not merges and finished:
        yield Damage(run.path / "running", f"{readable(run.path / 'running')} holds no merge")
    for path in rows:
        try:
            files.read_json(path, own=True)
        except UserError as error:
            yield Damage(path, str(error))


def _running(run: Run) -> list[Path]:
    """The running merges of merge_every_task."""
    return sorted((run.path / "running").glob("*.safetensors"))


def _rows(run: Run) -> list[Path]:
    """What they were measured at, a file for each task."""
    found = [path for _, folder in run.tasks() for path in folder.glob("*.json")]
    return sorted(path for path in found if path.name != "evaluation.json")


def _of_task(run: Run, index: int, last: bool) -> Iterator[Damage]:
    try:
        record = run.record(index)
    except UserError as error:
        yield Damage(run.evaluation(index), str(error).removesuffix(f". {run.advice}"), index)
        return
    known = (run.encoder(index).name, run.method_state(index).name)
    if not isinstance(record["files"], dict) or set(record["files"]) - set(known):  # a path might lead anywhere
        yield Damage(run.evaluation(index), f"{readable(run.evaluation(index))} names files of no task", index)
        return
    for name, checksum in record["files"].items():
        path = run.task(index) / name
        if not path.exists() and not last and not run.keeps_tasks():
            continue
        try:
            if files.verify(path) != checksum:
                yield Damage(path, f"{readable(path)} is not what task {index + 1} was evaluated with", index)
        except UserError as error:
            yield Damage(path, str(error), index)


def repair(run: Run, found: list[Damage]) -> None:
    """Delete what is damaged and what says that it is done, so that the training makes it again.

    A task that is trained again gives the same bytes on the same machine, so the tasks after it stay; where it does
    not, their record of the encoder that they started from no longer holds, and they are trained again too.
    """
    followed = any(d.task is None and d.path.parent != run.path and d.path.parent.parent == run.path for d in found)
    # A task may come out with other bits, so that the merge with it no longer holds.
    followed |= any(d.path == run.path / "running" or d.task is not None for d in found)
    doomed = {d.path for d in found} | {run.metrics}
    doomed |= {run.evaluation(d.task) for d in found if d.task is not None}
    if followed:
        doomed |= {*_running(run), *_rows(run)}
    if not run.keeps_tasks() and (followed or any(d.task is not None for d in found)):
        # The encoders that it could be made from are gone.
        doomed |= {path for _, folder in run.tasks() for path in folder.iterdir()}
    for path in doomed:
        if not path.is_dir():
            path.unlink(missing_ok=True)
