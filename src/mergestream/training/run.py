"""Train a stream of tasks: settings in, a run directory out."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path

import torch

from mergestream.compose.training import TrainingSettings
from mergestream.data.inventory import Inventory
from mergestream.display import tables
from mergestream.runs.directory import Run, readable
from mergestream.runs.repair import damage, repair
from mergestream.runs.results import TaskRecord, assemble, counts_of
from mergestream.runtime import files, processes
from mergestream.runtime.errors import UserError, program
from mergestream.runtime.interrupt import Signals
from mergestream.runtime.lock import Lock, held
from mergestream.runtime.shared import require_shared
from mergestream.training import loggers
from mergestream.training.arithmetic import adopt
from mergestream.training.callbacks.progress import StreamProgress
from mergestream.training.environment import require_own_devices
from mergestream.training.fit import silence_lightning
from mergestream.training.launcher import join
from mergestream.training.session import Session
from mergestream.training.task import complete, consolidate, curve, evaluate, fit, measure_again, record, restore, save


def train(settings: TrainingSettings, signals: Signals) -> None:
    """Train, save and evaluate every task, continuing from what is on disk. Every process of the run calls this.

    Args:
        settings: of the run.
        signals: the signals that may stop this process.

    Raises:
        UserError: if the data, the weights or the run directory are not what they must be.
        Stopped: if a signal arrived; the work is saved.
    """
    silence_lightning()
    if settings.fit.threads is not None:
        torch.set_num_threads(settings.fit.threads)
    device = settings.inputs.device()
    join(device, settings.fit.timeout_minutes)
    if device.type == "cuda":  # its fastest kernels add up in another order every time
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    run = settings.run
    _check_place(run.root, device)
    with ExitStack() as stack:
        lock = processes.together(lambda: _begin(settings, stack) if processes.is_first() else None)
        inventory = processes.from_first(settings.inputs.arrivals) if run.grows else None
        unchanged = inventory is None or inventory.content() == run.images()
        if run.finished() and unchanged and not _lacks_curvature(settings):
            if lock is not None:
                _show_finished(settings)
            return
        if inventory is not None:
            _require_trainable(settings, inventory)
        session = Session.open(adopt(settings), signals, device, lock, inventory)
        records = _train_tasks(session)
        session.on_first(_finish, session, records)


def _check_place(root: Path, device: torch.device) -> None:
    """Check that each process has a device of its own, and that all see the same files."""
    require_own_devices(device)
    here = processes.placement()
    if here.local_size < here.size:
        require_shared(root)


def _begin(settings: TrainingSettings, stack: ExitStack) -> Lock:
    """Return the lock of the run directory, which is as it must be; leaving `stack` releases it."""
    lock = stack.enter_context(held(settings.run.path))
    _check_directory(settings)
    return lock


def _train_tasks(session: Session) -> list[TaskRecord]:
    """Bring every task to its end, in order, and return the records of all."""
    records: list[TaskRecord] = []
    parent = session.stamp["base_sha256"]  # checksum of what the next task starts from
    steps, epochs = session.steps_left(), [plan.epochs for plan in session.plans]
    with StreamProgress(steps, epochs, visible=session.is_first) as progress:
        for plan in session.plans:
            session.training.current = plan.index
            if plan.finished and not session.continues(plan, parent):  # an earlier task came out different this time
                plan.finished = False
                progress.extend(plan.steps)
            if plan.finished:
                restore(session, plan)
                measure_again(session, plan)
                complete(session, plan)
            else:
                progress.start(plan.index)
                fitted = fit(session, plan, parent, progress)
                consolidate(session, plan)
                written = session.on_first(save, session, plan, fitted)
                curved = curve(session, plan, session.settings.curvature, written)
                written = written and {**written, **curved}
                counts, seconds = evaluate(session, plan)
                session.on_first(record, session, plan, fitted, written, counts, seconds)
                session.signals.saved = True
                progress.finish(sum(counts["agnostic"]) / sum(counts["total"]) if counts else None)
                processes.barrier()
            records.append(session.run.record(plan.index))
            if session.merging:
                session.merging.follow(plan.index, session.measure if plan.evaluated else None)
            parent = session.parent_of_next(records[-1], plan, parent)
    return records


def _check_directory(settings: TrainingSettings) -> None:
    """Check that the files of the run directory are intact and belong to the config, or repair them."""
    run = settings.run
    files.remove_partials(run.path)
    found = damage(run)
    if found and not settings.repair:
        more = f" ({len(found) - 1} more)" if len(found) > 1 else ""
        raise UserError(f"{found[0].reason}{more}. {run.advice}")
    if not any(item.path == run.path / "config.yaml" for item in found) and run.begun():
        run.require_same(settings.config)
    for item in found:
        print(f"repair: {item.reason}")
    if found:
        repair(run, found)
    merge = settings.merge
    # A running merge has taken what it needs of the dropped tasks.
    held = merge.bound.strategy.needs if merge and run.running(merge.bound.strategy.name).is_file() else None
    lost = [kind for kind in settings.curvature if kind != held]
    if lost and not run.keeps_tasks():
        raise UserError(
            f"curvature.{lost[0]}=true needs the encoder of each task; {readable(run.path)} was trained "
            "with keep_tasks=false. Leave it out, or write tag=NAME to train a second run"
        )


def _lacks_curvature(settings: TrainingSettings) -> bool:
    """Return whether a finished task lacks curvature that is asked for."""
    run = settings.run
    finished = [index for index, _ in run.task_folders() if run.encoder(index).is_file()]
    return any(run.without_curvature(index, settings.curvature) for index in finished if settings.curvature)


def _require_trainable(settings: TrainingSettings, inventory: Inventory) -> None:
    """Check that the method can train what has arrived.

    Raises:
        UserError: if it trains on all tasks at once and has begun, or if images of a task that it must train are gone.
    """
    run = settings.run
    started = run.started()
    if settings.method.data == "all" and started and len(inventory.tasks) > len(run.stream()["tasks"]):
        raise UserError(
            f"method={run.method} trains on all tasks at once, so it takes no tasks later; "
            f"{inventory.tasks[-1].name} arrived for {readable(run.path)}. Write tag=NAME to train on all of them in a "
            "second run"
        )
    if not run.keeps_tasks() and (
        settings.merge is None
        or settings.merge.keep_tasks
        or not run.running(settings.merge.bound.strategy.name).is_file()
    ):
        raise UserError(
            f"the merge of {readable(run.path)} stands in for encoders that were dropped (keep_tasks=false). To keep "
            "it up to date, repeat merge_every_task=true keep_tasks=false and its strategy and lambda"
        )
    finished = [name for index, name in enumerate(started) if run.evaluation(index).is_file()]
    of_tasks = settings.method.data == "task" or (settings.method.data == "all" and not finished)
    for index, task in enumerate(inventory.tasks if of_tasks else []):
        trained = task.name in finished
        if trained and not run.without_curvature(index, settings.curvature):
            continue
        if missing := task.train.missing():
            what = "a task whose curvature is asked for" if trained else "a task that is not finished"
            raise UserError(
                f"{what} needs its training images; {len(missing)} of task {task.name} are gone, such as "
                f"{missing[0]}. Restore them"
            )


def _finish(session: Session, records: list[TaskRecord]) -> None:
    """Write metrics.json and show the results."""
    run, stamp = session.run, session.stamp
    seen = [plan.seen for plan in session.plans]
    timing = {"setup": session.setup_seconds}
    timing |= {stage: sum(r["seconds"][stage] for r in records) for stage in ("training", "evaluation")}
    timing["total"] = sum(timing.values())
    hashes = {key: stamp[key] for key in ("base_sha256", "data_sha256")}
    devices = processes.shard()[1]
    if session.merging:
        session.merging.finish(session.zero_shot, timing, devices, hashes)
    rows = [counts_of(record) for record in records]
    heads = [task.classes for task in session.stream.tasks]
    metrics = assemble("train", session.settings.config, session.zero_shot, rows, seen, timing, devices, heads)
    metrics["method"] = session.settings.method.facts()
    metrics["spikes"] = {name: [r["spikes"][name] for r in records] for name in ("loss", "gradient_norm")}
    metrics["provenance"] |= {"begun": run.base()["begun"], **hashes}
    files.write_json(run.metrics, metrics)
    loggers.close(session.logger)
    show(run, f"trained in {timing['total']:.1f} s")


def _show_finished(settings: TrainingSettings) -> None:
    if not settings.run.grows:
        settings.run.require_data(settings.inputs.description())
    show(settings.run, "already finished, nothing to do")
    if settings.fit.evaluate == "each" and None in settings.run.result()["overall"]:
        reason = "the run was not evaluated on all tasks after every task, so measures that need it are absent"
        print(f"{reason}; evaluate=each needs a new run, with tag=NAME" if settings.run.keeps_tasks() else reason)
    if settings.merge and not list(settings.run.path.glob("running/*.safetensors")):
        print(f"the run was trained without merge_every_task; {program('merge')} prefixes=true gives the same merges")


def show(run: Run, headline: str) -> None:
    """Print the table of a finished run and its directory."""
    tables.run_table(headline, [task["name"] for task in run.stream()["tasks"]], run.result())
    print(f"results in {readable(run.path)}")
