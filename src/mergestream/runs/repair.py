"""Finds damage to a run directory before anything in it is used, and repairs it for ``repair=true``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mergestream.runs.directory import ADAPTER, ADAPTER_CONFIG, CURVATURES, ENCODER, Run, base_path, readable
from mergestream.runtime import files
from mergestream.runtime.errors import UserError


@dataclass(frozen=True)
class Damage:
    """A file that is missing or differs from what the run wrote.

    Args:
        path: the file.
        reason: what is wrong; names the file.
        task: the task that it belongs to; None for a file of the whole run.
    """

    path: Path
    reason: str
    task: int | None = None


def damage(run: Run) -> list[Damage]:
    """Return all damage in a run directory. Reads each file once."""
    return list(_damage(run)) if run.begun() else []


def repair(run: Run, found: Sequence[Damage]) -> None:
    """Delete damaged files and the records that mark their tasks as finished, so that the training makes them again.

    Training a task again gives the same bytes on the same machine, so later tasks stay. On another machine their record
    of the encoder that they started from no longer matches, and they are trained again too.
    """
    doomed = {d.path for d in found} | {run.metrics}
    doomed |= {run.evaluation(d.task) for d in found if d.task is not None}
    # The task may get other bits, which invalidates every merge with it; a damaged merge is made again from all tasks.
    if any(d.path.parent not in (run.path, run.root / "_base") for d in found):
        doomed |= {*_running(run), *_rows(run)}
        if not run.keeps_tasks():  # the encoders that it is made from are gone
            doomed |= {path for _, folder in run.task_folders() for path in folder.iterdir()}
    for path in doomed:
        if not path.is_dir():
            path.unlink(missing_ok=True)


def _damage(run: Run) -> Iterator[Damage]:
    yield from _unsound(run, run.path / "config.yaml", run.config)
    yield from _unsound(run, run.path / "stream.json", run.stream)
    if run.grows:
        path = run.path / "images.json"
        yield from _unsound(run, path, partial(run.read, path))
    base = list(_unsound(run, run.path / "base.json", run.base))
    yield from base or _unsound(run, base_path(run.root, run.base()["sha256"]), run.base_file)
    trained = 0
    if run.finished():
        found = list(_unsound(run, run.metrics, partial(run.read, run.metrics, "spikes")))
        yield from found
        trained = 0 if found else len(run.read(run.metrics)["spikes"]["loss"])
    # An evaluated task is finished, and so is every task before it.
    folders = [index for index, _ in run.task_folders()]
    finished = max([trained, *(index + 1 for index in folders if run.evaluation(index).exists())])
    for index in range(finished):
        yield from _of_task(run, index)
    for index in folders:
        path = run.checkpoint(index)
        if path.exists() and index >= finished:
            yield from _unsound(run, path, partial(files.verify, path), index)
    yield from _of_running_merge(run)


def _unsound(run: Run, path: Path, read: Callable[[], object], task: int | None = None) -> Iterator[Damage]:
    """Yield damage to `path` if reading it fails."""
    try:
        read()
    except UserError as error:
        yield Damage(path, str(error).removesuffix(f". {run.advice}"), task)


def _of_task(run: Run, index: int) -> Iterator[Damage]:
    written = run.evaluation(index)
    if found := list(_unsound(run, written, partial(run.record, index), index)):
        yield from found
        return
    record = run.record(index)
    known = [ENCODER, ADAPTER, ADAPTER_CONFIG, run.method_state(index).name]
    known += [run.curvature(index, kind).name for kind in CURVATURES]
    if not isinstance(record["files"], dict) or set(record["files"]) - set(known):  # a path in it could lead anywhere
        yield Damage(written, f"{readable(written)} names files that no task has", index)
        return
    for name, checksum in record["files"].items():
        path = run.task(index) / name
        if record.get("dropped") and not path.exists():
            continue
        if found := list(_unsound(run, path, partial(files.checksum, path), index)):
            yield from found
        elif files.checksum(path) != checksum:
            yield Damage(path, f"{readable(path)} is not the file that task {index + 1} was evaluated with", index)


def _of_running_merge(run: Run) -> Iterator[Damage]:
    merges, rows = _running(run), _rows(run)
    for path in merges:
        yield from _unsound(run, path, partial(files.verify, path))
    for path in rows:
        yield from _unsound(run, path, partial(files.read_json, path, own=True))
    for name in sorted({path.name for path in rows}):
        known = [index for index, folder in run.task_folders() if folder / name in rows]
        if gaps := sorted(set(range(max(known) + 1)) - set(known)):
            path = run.task(gaps[0]) / name
            yield Damage(path, f"{readable(path)} is missing")
    if rows and not merges:
        yield Damage(
            rows[0], f"{readable(rows[0])} belongs to a merge that is missing in {readable(run.path / 'running')}"
        )


def _running(run: Run) -> list[Path]:
    """Return the running merges of ``merge_every_task``."""
    return sorted((run.path / "running").glob("*.safetensors"))


def _rows(run: Run) -> list[Path]:
    """Return the evaluations of the running merges, one file for each task."""
    found = [path for _, folder in run.task_folders() for path in folder.glob("*.json")]
    return sorted(path for path in found if path.name not in ("evaluation.json", ADAPTER_CONFIG))
