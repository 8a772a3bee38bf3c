"""The settings of train.py."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from torch.optim import Optimizer

from mergestream.compose import checks
from mergestream.compose.build import build, method_of
from mergestream.compose.inputs import Inputs
from mergestream.compose.overrides import NAMING_KEYS, require_read, typed
from mergestream.compose.run import merges_every_task, recorded, resolve, run_of
from mergestream.compose.strategy import bound_strategy, scales_of
from mergestream.merging.curvature import WHAT
from mergestream.methods.method import Method
from mergestream.models.adapters import LoRA
from mergestream.runs.directory import CURVATURES, Run
from mergestream.runtime.errors import UserError
from mergestream.strategies.strategy import BoundStrategy


@dataclass(frozen=True)
class AveragingSettings:
    """How the weights of a task are averaged along its training.

    Args:
        kind: ``ema`` or ``swa``.
        every: steps between two weights that are taken.
        decay: of ``ema``.
    """

    kind: str
    every: int
    decay: float


@dataclass(frozen=True)
class FitSettings:
    """How each task is trained.

    Args:
        seed: keys every random draw.
        epochs: of every task, or one number for each task.
        batch_size: samples in a global batch, all processes together.
        optimizer: parameters → optimizer.
        warmup: warm-up steps if an integer, a fraction of all steps if a float.
        fused: whether one kernel updates all weights; None is where the arithmetic is not that of 32-true.
        gradient_clip: the largest norm of a gradient.
        averaging: of the weights along a task; None keeps the last ones.
        precision, accelerator: as Lightning names them; ``auto`` is a precision until the run begins.
        eval_precision: of evaluation; ``auto`` until the run begins.
        compile: whether the encoder is compiled; ``auto`` until the run begins.
        accumulate: parts into which a batch is divided.
        activation_checkpointing: whether activations are computed again instead of kept.
        threads: of a process on its CPU; None is torch's own number.
        evaluate: ``each``, ``last``, or a number of tasks after which to evaluate.
        every_epochs, every_minutes: how often the task in progress is saved; None is never.
        timeout_minutes: how long a process may keep the others waiting.
    """

    seed: int
    epochs: int | list[int]
    batch_size: int
    optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer]
    fused: bool | None
    warmup: int | float
    gradient_clip: float
    averaging: AveragingSettings | None
    precision: str
    eval_precision: str
    compile: bool | str
    accumulate: int
    activation_checkpointing: bool
    threads: int | None
    evaluate: int | str
    accelerator: str
    every_epochs: int | None
    every_minutes: float | None
    timeout_minutes: float


@dataclass(frozen=True)
class RunningMergeSettings:
    """The merge that a training keeps up to date.

    Args:
        bound: the strategy and its options.
        scale: λ.
        keep_tasks: whether the encoders of all tasks are kept.
    """

    bound: BoundStrategy
    scale: float
    keep_tasks: bool


@dataclass(frozen=True)
class TrainingSettings:
    """What train.py needs.

    Args:
        run: the run directory.
        config: the resolved config, for the record.
        inputs: data and weights.
        adapter: the adapters that are trained; None trains all weights.
        method: the continual-learning method.
        fit: how each task is trained.
        merge: the merge to keep up to date; None is none.
        curvature: what to save beside each encoder: ``fisher``, ``gram``, ``classes``.
        curvature_samples: images of each task that it is taken from.
        repair: whether damaged files are trained again.
        logger: (path, config) → logger of Lightning, or None.
        devices: processes, or ``auto``.
        max_restarts: how often lost processes are started again.
        watch: seconds between two looks for tasks that arrive; None is not to wait for any.
        watched: where they arrive.
    """

    run: Run
    config: dict[str, Any]
    inputs: Inputs
    adapter: LoRA | None
    method: Method
    fit: FitSettings
    merge: RunningMergeSettings | None
    curvature: list[str]
    curvature_samples: int
    repair: bool
    logger: Callable[..., Any]
    devices: int | str
    max_restarts: int
    watch: float | None
    watched: Path


def training_settings(cfg: DictConfig, run: Run | None = None) -> TrainingSettings:
    """Check a config of train.yaml and return its settings; neither data nor weights are touched.

    Args:
        cfg: the composed config.
        run: the run, for a process that cannot see the command line; None takes it from `cfg`.

    Raises:
        UserError: if a value breaks its rule.
    """
    require_read(cfg)
    resolve(cfg)
    checks.check_training(cfg)
    allowed = cfg.allow_targets
    method = method_of(cfg)
    if cfg.accumulate > 1 and not method.allows_parts:
        raise UserError(
            "accumulate needs a method whose class sets weighs_samples, or its penalty could count once for each part; "
            f"{type(method).__name__} does not. Set it (see Method), or write accumulate=1."
        )
    fit = FitSettings(
        seed=cfg.seed,
        epochs=list(cfg.epochs) if isinstance(cfg.epochs, ListConfig) else cfg.epochs,
        batch_size=cfg.batch_size,
        optimizer=build(cfg.optimizer, allowed, without=() if cfg.optimizer.get("fused") else ("fused",)),
        fused=cfg.optimizer.get("fused"),
        warmup=cfg.schedule.warmup,
        gradient_clip=cfg.gradient_clip,
        averaging=_averaging(cfg.method),
        precision=cfg.precision,
        eval_precision=cfg.eval_precision,
        compile=cfg.compile,
        accumulate=cfg.accumulate,
        activation_checkpointing=cfg.activation_checkpointing,
        threads=cfg.threads,
        evaluate=cfg.evaluate,
        accelerator=cfg.accelerator,
        every_epochs=cfg.checkpoint.every_epochs,
        every_minutes=cfg.checkpoint.every_minutes,
        timeout_minutes=cfg.launcher.timeout_minutes,
    )
    return TrainingSettings(
        run=run or run_of(cfg, [word for _, word in typed(without_keys=NAMING_KEYS)]),
        config=recorded(cfg),
        inputs=Inputs(cfg),
        adapter=_adapter(cfg.model),
        method=method,
        fit=fit,
        merge=_running_merge(cfg, method),
        curvature=[kind for kind in CURVATURES if cfg.curvature[kind]],
        curvature_samples=cfg.curvature.samples,
        repair=cfg.repair,
        logger=partial(build, cfg.logger, allowed),
        devices=cfg.devices,
        max_restarts=cfg.launcher.max_restarts,
        watch=cfg.watch,
        watched=Path(str(cfg.dataset.get("path", ""))).expanduser(),
    )


def _adapter(model: DictConfig) -> LoRA | None:
    if model.adapter is None:
        return None
    return LoRA(model.adapter_rank, float(model.adapter_alpha), tuple(model.adapter_targets))


def _averaging(method: DictConfig) -> AveragingSettings | None:
    if method.average is None:
        return None
    return AveragingSettings(method.average, every=method.average_every, decay=method.average_decay)


def _running_merge(cfg: DictConfig, method: Method) -> RunningMergeSettings | None:
    if not merges_every_task(cfg):
        if method.start == "merged":
            raise UserError(f"a method that starts from the merge needs start: merged in its YAML; got {cfg.method}")
        return None
    if method.data != "task":
        asked = "merge_every_task=true" if cfg.merge_every_task else "method.start=merged"
        raise UserError(f"{asked} needs a method with an encoder for each task; got method={cfg.method.id}")
    bound = bound_strategy(cfg)
    bound.require_running()
    needed = bound.strategy.needs
    if needed and not cfg.curvature[needed]:
        raise UserError(
            f"a merge with strategy={bound.strategy.name} after every task needs {WHAT[needed]} of each; write "
            f"curvature.{needed}=true"
        )
    for kind in CURVATURES:
        if cfg.curvature[kind] and kind != needed and not cfg.keep_tasks:
            raise UserError(
                f"keep_tasks=false drops the curvature of a task with its encoder; leave curvature.{kind}=true out"
            )
    (scale,) = scales_of(cfg)
    return RunningMergeSettings(bound, scale, cfg.keep_tasks)
