"""State of a run during training."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import torch
from pytorch_lightning.loggers import Logger
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mergestream.compose.training import FitSettings, TrainingSettings
from mergestream.data.inventory import Inventory
from mergestream.data.stream import TaskStream
from mergestream.data.tasks import Task
from mergestream.evaluation import evaluate
from mergestream.merging.accumulate import Accumulation
from mergestream.merging.engine import AVERAGE
from mergestream.metrics import Counts
from mergestream.models import adapters
from mergestream.models.clip import Clip, TextHead, text_head
from mergestream.runs.directory import Run, readable, store_base
from mergestream.runs.identity import departures
from mergestream.runs.results import TaskRecord, circumstances
from mergestream.runtime import files, processes
from mergestream.runtime.errors import UserError
from mergestream.runtime.interrupt import Signals
from mergestream.runtime.lock import Lock
from mergestream.training.arithmetic import (
    channels_last_pays,
    decide,
    require_checkpointing,
    set_matrix_precision,
)
from mergestream.training.class_statistics import require_projection
from mergestream.training.merge_every_task import RunningEvaluation

P = ParamSpec("P")
T = TypeVar("T")


@dataclass
class TaskPlan:
    """How one task of the run is trained.

    Args:
        index: number of the task, from 0.
        task: its classes and samples.
        epochs: how often its samples are seen.
        steps: optimizer steps of the task.
        first_step: optimizer steps of all tasks before it.
        seen: how many tasks of the stream count as seen after it.
        finished: whether an earlier process has finished it.
        evaluated: whether the encoder is evaluated after it; see ``evaluate`` in train.yaml.
    """

    index: int
    task: Task
    epochs: int
    steps: int
    first_step: int
    seen: int
    finished: bool
    evaluated: bool


@dataclass
class Session:
    """A run in training, as one of its processes sees it.

    Args:
        settings: of the run.
        signals: the signals that may stop this process.
        device: of this process.
        lock: held by the process that writes; None on the others.
        logger: on the process that writes.
        stream: the data of all tasks, for evaluation.
        training: the stream that is trained on: `stream`, or all of it as one task.
        encoder: the image tower, trained in place.
        head: the frozen text head over all classes.
        base: θ₀, on the CPU.
        stamp: metadata of every file of the run; see `Run.stamp`.
        plans: the tasks to train.
        merging: keeps a merge up to date; None without ``merge_every_task``.
        encode: calls the encoder in training; compiled once for all tasks, if it is compiled.
        zero_shot: counts of θ₀.
        setup_seconds: how long opening took.
        mean: of the encoders so far, kept for ``curvature.classes``.
    """

    settings: TrainingSettings
    signals: Signals
    device: torch.device
    lock: Lock | None
    logger: Logger | None
    stream: TaskStream
    training: TaskStream
    encoder: nn.Module
    head: TextHead
    base: dict[str, Tensor]
    stamp: dict[str, str]
    plans: list[TaskPlan]
    merging: RunningEvaluation | None
    encode: Callable[[Tensor], Tensor]
    zero_shot: Counts
    setup_seconds: float
    mean: Accumulation = field(default_factory=lambda: Accumulation(AVERAGE))

    @classmethod
    def open(
        cls,
        settings: TrainingSettings,
        signals: Signals,
        device: torch.device,
        lock: Lock | None,
        inventory: Inventory | None,
    ) -> Session:
        """Load data and weights, and write the first files of the run; nothing is written if data or weights fail.

        Args:
            settings, signals, device, lock: see `Session`.
            inventory: the images of a stream that grows; None for other streams.
        """
        began = time.monotonic()
        run, inputs = settings.run, settings.inputs
        # Downloads and decodes what is new, unless the images are listed.
        source = processes.together(lambda: inventory.source() if inventory else processes.first_alone(inputs.source))
        clip = inputs.clip()
        settings, said = decide(settings, device, clip.encoder)
        logger = settings.logger(path=run.path, config=settings.config) if lock is not None else None
        stream = inputs.stream(clip.transforms, source)
        training = stream.joined() if settings.method.data == "all" else stream
        clip.model.to(device)
        _prepare(clip.encoder, settings, device)
        _require_steps(settings, training)
        head = text_head(clip, source.prompts, source.class_groups)
        base = {name: tensor.detach().cpu().clone() for name, tensor in clip.encoder.state_dict().items()}
        if settings.merge:
            shapes = {name: tuple(tensor.shape) for name, tensor in base.items()}
            if warning := settings.merge.bound.require_running(shapes):
                said = [*said, warning]
        if lock is not None:
            print(*said, sep="\n", end="\n" * bool(said))
            _write_start(settings, stream, clip, base, inventory)
        processes.barrier()
        if settings.adapter:
            adapters.attach(clip.encoder, settings.adapter, settings.fit.seed)
        stamp, heads = run.stamp(settings.config), [task.classes for task in stream.tasks]
        return cls(
            settings=settings,
            signals=signals,
            device=device,
            lock=lock,
            logger=logger,
            stream=stream,
            training=training,
            encoder=clip.encoder,
            head=head,
            base=base,
            stamp=stamp,
            plans=_plans(settings, training, len(stream), stamp["base_sha256"]),
            merging=RunningEvaluation(run, settings.config, settings.merge, heads) if settings.merge else None,
            encode=torch.compile(clip.encoder) if settings.fit.compile else clip.encoder,
            zero_shot=evaluate(
                clip.encoder, head, stream, seen=0, device=device, precision=settings.fit.eval_precision
            ),
            setup_seconds=time.monotonic() - began,
        )

    @property
    def run(self) -> Run:
        """The run directory."""
        return self.settings.run

    @property
    def is_first(self) -> bool:
        """Whether this process writes and prints."""
        return self.lock is not None

    def on_first(self, write: Callable[P, T], *arguments: P.args, **keywords: P.kwargs) -> T | None:
        """Call `write` on the process that writes, if it still holds the lock; return None on the others.

        Raises:
            UserError: if another process took the run over.
        """
        if self.lock is None:
            return None
        self.lock.check()
        return write(*arguments, **keywords)

    def measure(self, weights: Mapping[str, Tensor], seen: int) -> Counts:
        """Return the counts of other weights than those in training, which stay as they are."""
        own = {name: tensor.detach().clone() for name, tensor in self.encoder.state_dict().items()}
        adapters.load_weights(self.encoder, weights)
        counts = self.evaluate(seen)
        self.encoder.load_state_dict(own)
        return counts

    def evaluate(self, seen: int) -> Counts:
        """Return the counts of the encoder on all tasks, of which it has been trained on the first `seen`."""
        where: dict[str, Any] = {"device": self.device, "precision": self.settings.fit.eval_precision}
        with parametrize.cached():  # adapters are added to their matrices once
            return evaluate(self.encoder, self.head, self.stream, seen=seen, **where)

    def start_over(self) -> None:
        """Give the encoder the weights θ₀, or its adapters their first values."""
        if self.settings.adapter:
            adapters.reset(self.encoder, self.settings.fit.seed)
        else:
            self.encoder.load_state_dict(self.base)

    def stamp_of(self, plan: TaskPlan) -> dict[str, str]:
        """Return the metadata of the files of a task."""
        known = None if self.settings.method.data == "all" else plan.index
        return {**self.stamp, "data_sha256": self.run.data_hash(known), "task": str(plan.index)}

    def steps_left(self) -> int:
        """Return the optimizer steps of the tasks that are not finished."""
        return sum(plan.steps for plan in self.plans if not plan.finished)

    def continues(self, plan: TaskPlan, parent: str) -> bool:
        """Return whether the encoder of a finished task was trained from the one with the checksum `parent`."""
        return self.run.parent(plan.index) in (None, parent)  # None: dropped, so that only its merge remains

    def parent_of_next(self, record: TaskRecord, plan: TaskPlan, parent: str) -> str:
        """Return the checksum of what the task after `plan` starts from."""
        if self.settings.method.start == "merged":
            assert self.merging is not None
            return self.merging.checksum(plan.index)
        return _next_parent(self.settings, record, plan.index, parent)


def _prepare(encoder: nn.Module, settings: TrainingSettings, device: torch.device) -> None:
    """Set how the device computes, and check that the encoder can do what the settings say.

    Raises:
        UserError: if the encoder cannot compute activations again, has no projection, or cannot have the adapters.
    """
    precision = settings.fit.precision
    set_matrix_precision(device, precision)
    if channels_last_pays(encoder, device, precision):
        encoder.to(memory_format=torch.channels_last)
    if settings.fit.activation_checkpointing:
        require_checkpointing(encoder)
    if "classes" in settings.curvature:
        require_projection(encoder)
    if settings.adapter:
        adapters.adapted(encoder, settings.adapter)


def _next_parent(settings: TrainingSettings, record: TaskRecord, index: int, parent: str) -> str:
    return record["files"][settings.run.encoder(index).name] if settings.method.start == "previous" else parent


def _require_steps(settings: TrainingSettings, training: TaskStream) -> None:
    """Check that every task takes a step at which its weights are averaged."""
    fit = settings.fit
    if fit.averaging is None or settings.method.data == "none":
        return
    steps = [_steps(fit, index, task) for index, task in enumerate(training.tasks)]
    if fit.averaging.every > min(steps):
        raise UserError(
            f"method.average_every must be at most the steps of the shortest task, {min(steps)}; got "
            f"method.average_every={fit.averaging.every}"
        )


def _epochs(fit: FitSettings, index: int) -> int:
    return fit.epochs[index] if isinstance(fit.epochs, list) else fit.epochs


def _steps(fit: FitSettings, index: int, task: Task) -> int:
    return _epochs(fit, index) * -(-len(task.train) // fit.batch_size)


def _plans(settings: TrainingSettings, training: TaskStream, stream_length: int, base_sha256: str) -> list[TaskPlan]:
    """Return the tasks that the method trains, and which of them are finished."""
    run, fit = settings.run, settings.fit
    tasks = [] if settings.method.data == "none" else training.tasks
    plans: list[TaskPlan] = []
    parent: str | None = base_sha256  # None: unknown until the task before is trained
    for index, task in enumerate(tasks):
        finished = run.evaluation(index).is_file() and (parent is None or run.parent(index) in (None, parent))
        plans.append(
            TaskPlan(
                index=index,
                task=task,
                epochs=_epochs(fit, index),
                steps=_steps(fit, index, task),
                first_step=sum(plan.steps for plan in plans),
                seen=stream_length if settings.method.data == "all" else index + 1,
                finished=finished,
                evaluated=index + 1 == len(tasks) or _is_due(fit.evaluate, index + 1),
            )
        )
        if settings.method.start == "merged":
            parent = None
        elif settings.method.start == "previous":
            parent = _next_parent(settings, run.record(index), index, base_sha256) if finished else None
    return plans


def _is_due(evaluate: int | str, task: int) -> bool:
    """Return whether to evaluate after a task, counted from 1, that is not the last."""
    return evaluate == "each" or (not isinstance(evaluate, str) and task % evaluate == 0)


def _write_start(
    settings: TrainingSettings,
    stream: TaskStream,
    clip: Clip,
    base: Mapping[str, Tensor],
    inventory: Inventory | None,
) -> None:
    """Write what is known before the training, or check that it agrees with what the run was started with."""
    run, model = settings.run, settings.run.model
    preprocessing = {**clip.preprocessing, **stream.loading.preprocessing}
    described = {"stream": run.stream_name, **stream.describe()}
    if not (run.path / "stream.json").exists():
        files.write_json(run.path / "stream.json", described)
    elif inventory is None:
        run.require_data(described)
    elif run.stream() != described:
        _extend(run, described)
    # After stream.json, so that a run that ends here still knows that tasks have arrived.
    if inventory is not None and run.images() != inventory.content():
        files.write_json(run.path / "images.json", inventory.content())
    _, sha256 = store_base(run.root, base)
    if (run.path / "base.json").exists():
        if (begun := run.base()["sha256"]) != sha256:
            raise UserError(
                f"θ₀ must stay the one that {readable(run.path)} was started with, sha256 {begun[:12]}…; the weights "
                f"of model={model} are now {sha256[:12]}…. Restore them, or write tag=NAME to start a second run."
            )
        run.require_preprocessing(preprocessing)
    else:
        known: dict[str, Any] = {"name": model, "source": clip.source, "sha256": sha256}
        if clip.preprocessing or departures(preprocessing):
            known["preprocessing"] = {**clip.preprocessing, **departures(stream.loading.preprocessing)}
        parameters = sum(p.numel() for p in clip.model.parameters())
        begun_in = circumstances(processes.shard()[1], settings.fit.precision)
        files.write_json(run.path / "base.json", {**known, "begun": begun_in, "clip_parameters": parameters})
    if not (run.path / "config.yaml").exists():
        run.claim(settings.config)


def _extend(run: Run, described: Mapping[str, Any]) -> None:
    """Write the stream with the tasks that have arrived.

    Raises:
        UserError: if a task whose training has begun would change.
    """
    begun, now = run.stream()["tasks"], described["tasks"]
    for number, name in enumerate(run.started()):
        if now[number] != begun[number]:
            raise UserError(
                f"a task that arrives must leave the trained ones as they are; task {name} of {readable(run.path)} "
                f"would change, with stream={run.stream_name}. Write tag=NAME to start a second run"
            )
    files.write_json(run.path / "stream.json", described)
