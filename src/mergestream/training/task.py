"""The steps of one task: restore it, or fit, consolidate, save, evaluate and record it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from mergestream.merging.curvature import made_with
from mergestream.merging.encoder import apply
from mergestream.metrics import Counts, still_known
from mergestream.models import adapters
from mergestream.runtime import files, processes
from mergestream.runtime.seeding import key, seed_all
from mergestream.training import curvature
from mergestream.training.arithmetic import activation_checkpointing, optimizer_of
from mergestream.training.callbacks.averaging import Averaging
from mergestream.training.callbacks.checkpoint import Checkpointing
from mergestream.training.callbacks.health import Health, require_finite
from mergestream.training.callbacks.progress import StreamProgress
from mergestream.training.class_statistics import class_statistics
from mergestream.training.fit import fit_task
from mergestream.training.learner import Learner
from mergestream.training.session import Session, TaskPlan


@dataclass(frozen=True)
class Fitted:
    """A trained task.

    Args:
        label: such as "task 2 of 5".
        marks: metadata of its files.
        seconds: how long it was trained.
        spikes: how many steps had a spike in the loss or the gradient norm.
    """

    label: str
    marks: dict[str, str]
    seconds: float
    spikes: dict[str, int]


def restore(session: Session, plan: TaskPlan) -> None:
    """Load what a finished task left behind: the encoder and the state of the method."""
    run, index, method = session.run, plan.index, session.settings.method
    is_last = index + 1 == len(session.plans) or not session.plans[index + 1].finished
    kept = run.encoder(index).is_file()
    if kept or is_last:
        run.require_stamp(run.encoder(index), session.stamp_of(plan))
        load = adapters.load_adapter if run.adapter else adapters.load_weights
        load(session.encoder, files.read_tensors(run.encoder(index)))
    state = files.read_tensors(run.method_state(index)) if run.method_state(index).exists() else {}
    # With keep_tasks=false only the files of the last finished task are there, and they are enough.
    if state or is_last or kept or not _last_state_exists(session):
        method.restore(state, session.encoder, session.head, plan.task.classes)
    session.on_first(run.checkpoint(index).unlink, missing_ok=True)  # of a process killed while evaluating


def fit(session: Session, plan: TaskPlan, parent: str, progress: StreamProgress) -> Fitted:
    """Train the task, from its checkpoint if there is one.

    Args:
        session: of the run.
        plan: the task.
        parent: checksum of what it starts from.
        progress: shows every step.
    """
    settings, run, index = session.settings, session.run, plan.index
    if settings.method.start == "base":
        session.start_over()
    elif settings.method.start == "merged" and index:
        assert session.merging is not None
        session.encoder.load_state_dict(session.merging.weights())
    session.encoder.train()
    learner = Learner(
        session.encoder,
        session.head,
        plan.task.classes,
        optimizer_of(settings.fit),
        settings.fit.warmup,
        settings.method,
        plan.first_step,
        parts=(settings.fit.seed, index),
        encode=session.encode,
        accumulate=settings.fit.accumulate,
    )
    label, marks = f"task {index + 1} of {len(session.plans)}", {**session.stamp_of(plan), "parent": parent}
    health = Health(label)
    saving = Checkpointing(run.checkpoint(index), label, settings.fit, health, session.signals, session.lock)
    session.on_first(_remove_stale_checkpoint, session, index, parent)
    processes.barrier()
    averaging = Averaging(settings.fit.averaging, session.encoder) if settings.fit.averaging else None
    callbacks = [progress, health, settings.method, *([averaging] if averaging else [])]
    with activation_checkpointing(session.encoder, settings.fit.activation_checkpointing):
        device, epochs = session.device, plan.epochs
        fit_task(learner, session.training, settings.fit, device, epochs, callbacks, saving, marks, session.logger)
    if averaging:
        averaging.adopt()
    return Fitted(label, marks, saving.seconds, health.spikes)


def consolidate(session: Session, plan: TaskPlan) -> None:
    """Let the method keep what later tasks need of this one."""
    session.encoder.to(session.device).eval()
    session.head.to(session.device)
    # Its draws do not depend on whether the training was interrupted.
    seed_all(key(session.settings.fit.seed, plan.index, "consolidate", processes.rank()))
    session.settings.method.consolidate(session.encoder, session.head, plan.task.classes, _samples(session))


def save(session: Session, plan: TaskPlan, fitted: Fitted) -> dict[str, str]:
    """Write the encoder and the state of the method; return the checksums of the files by name."""
    run, method = session.run, session.settings.method
    encoder, state_file = run.encoder(plan.index), run.method_state(plan.index)
    written = {}
    if lora := session.settings.adapter:
        config = run.adapter_config(plan.index)
        files.write_plain_json(config, adapters.adapter_config(session.encoder, lora))
        written[config.name] = files.checksum(config)
        weights = adapters.adapter_tensors(session.encoder)
    else:
        state = session.encoder.state_dict()
        weights = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    written[encoder.name] = files.write_tensors(encoder, weights, fitted.marks)
    if state := method.state():
        require_finite(state, f"the state of method={method.id}", fitted.label)
        written[state_file.name] = files.write_tensors(state_file, state, fitted.marks)
    return written


def curve(session: Session, plan: TaskPlan, kinds: Sequence[str], written: Mapping[str, str] | None) -> dict[str, str]:
    """Write the curvature of the task, which is taken from its own training images; return the checksums by file name.

    Args:
        session: of the run.
        plan: the task; the session has its encoder.
        kinds: of curvature.
        written: the checksums of the files of the task; None on processes that do not write.
    """
    run, settings, found = session.run, session.settings, {}
    session.encoder.to(session.device).eval()
    session.head.to(session.device)
    for kind in kinds:
        batches = curvature.first_batches(_samples(session), settings.curvature_samples, settings.fit.batch_size)
        marks: dict[str, str] = {}
        if kind == "fisher":
            tensors = curvature.fisher(session.encoder, session.head, plan.task.classes, batches)
        elif kind == "gram":
            tensors = curvature.input_grams(session.encoder, batches)
        else:
            tensors, marks = _class_statistics(session, plan)
        if written is not None:
            require_finite(tensors, f"curvature.{kind}", f"task {plan.index + 1} of {len(session.plans)}")
            path, encoder = run.curvature(plan.index, kind), written[run.encoder(plan.index).name]
            marks |= {**session.stamp_of(plan), "encoder": encoder}
            found[path.name] = session.on_first(files.write_tensors, path, tensors, marks) or ""
    return found


def _class_statistics(session: Session, plan: TaskPlan) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the class statistics of the task by its encoder and by the mean of all so far, and what those are."""
    processes.barrier()  # the first process has written the encoder
    run, mean = session.run, session.mean
    paths = [run.encoder(index) for index in range(plan.index + 1)]
    for path in paths[mean.tasks :]:
        mean.add(run.base_file(), path)
    tau, _ = mean.task_vector()
    weights = {"encoder": files.read_tensors(paths[-1]), "average": apply(session.base, tau, 1.0)}
    checksums = [files.read_metadata(path)[files.CHECKSUM] for path in paths]
    batches = (_samples(session) for _ in weights)
    return class_statistics(session.encoder, session.head, weights, batches), {"encoders": made_with(checksums)}


def complete(session: Session, plan: TaskPlan) -> None:
    """Write the curvature that a restored task lacks."""
    run, known = session.run, session.run.record(plan.index)
    kinds = run.without_curvature(plan.index, session.settings.curvature)
    processes.barrier()  # all have read the record before one writes it
    if kinds and run.encoder(plan.index).is_file():
        written = known["files"] if session.is_first else None
        found = curve(session, plan, kinds, written)
        session.on_first(files.write_json, run.evaluation(plan.index), {**known, "files": {**known["files"], **found}})
        processes.barrier()


def evaluate(session: Session, plan: TaskPlan) -> tuple[Counts | None, float]:
    """Return the counts of the encoder on all tasks, if it is evaluated, and how many seconds that took."""
    began = time.monotonic()
    counts = session.evaluate(plan.seen) if plan.evaluated else None
    return counts, time.monotonic() - began


def measure_again(session: Session, plan: TaskPlan) -> None:
    """Evaluate a restored task on the tasks that have arrived since, among their classes too, and record it.

    What cannot be measured because its encoder is gone becomes None; see `still_known`.
    """
    run = session.run
    known = run.record(plan.index)
    processes.barrier()  # all have read it before one writes it
    if known["total"] is None or run.is_current(known):
        return
    seconds, counts = 0.0, None
    if run.encoder(plan.index).is_file():
        counts, seconds = evaluate(session, plan)
    elif plan.evaluated:
        counts = still_known(known, plan.seen, len(session.stream))
    measured = counts or dict.fromkeys(Counts.__annotations__)
    spent = {**known["seconds"], "evaluation": known["seconds"]["evaluation"] + seconds}
    now = {**known, **measured, "seconds": spent, "data_sha256": run.data_hash()}
    session.on_first(files.write_json, run.evaluation(plan.index), now)
    processes.barrier()


def record(
    session: Session,
    plan: TaskPlan,
    fitted: Fitted,
    written: dict[str, str] | None,
    counts: Counts | None,
    seconds: float,
) -> None:
    """Write the record that marks the task as finished, and remove its checkpoint."""
    spent = {"training": fitted.seconds, "evaluation": seconds}
    measured = counts or dict.fromkeys(Counts.__annotations__)
    known = {**measured, "files": written, "spikes": fitted.spikes, "seconds": spent}
    if session.run.grows:
        known["data_sha256"] = session.run.data_hash()
    files.write_json(session.run.evaluation(plan.index), known)
    session.run.checkpoint(plan.index).unlink(missing_ok=True)


def _last_state_exists(session: Session) -> bool:
    """Return whether the last finished task left a state of the method."""
    finished = [plan.index for plan in session.plans if plan.finished]
    return bool(finished) and session.run.method_state(finished[-1]).exists()


def _remove_stale_checkpoint(session: Session, index: int, parent: str) -> None:
    """Remove the checkpoint of a task if an earlier task was trained again since, and came out different."""
    saved = session.run.checkpoint(index)
    if saved.exists() and files.read_metadata(saved).get("parent") != parent:
        saved.unlink()


def _samples(session: Session) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this process's share of the task, without the samples of weight 0 that only keep processes in step."""
    stream = session.training
    for images, labels, weights in stream.on_device(stream.consolidation_dataloader(), session.device):
        real = weights > 0
        yield images[real], labels[real]
