"""What each command needs, as typed values: a checked config in, settings out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch.optim import Optimizer

from mergestream.compose import checks
from mergestream.compose.build import build, device_of
from mergestream.compose.inputs import Inputs
from mergestream.compose.overrides import ANALYSIS_KEYS, MERGE_KEYS, NAMING_KEYS, chosen, typed
from mergestream.methods.method import Method
from mergestream.runs.directory import Run
from mergestream.runtime.errors import UserError
from mergestream.strategies.strategy import BoundStrategy

# What a merge and its run must agree in, besides what was typed.
COMPARED = ("dataset", "stream", "model", "method", "tasks", "seed")


@dataclass(frozen=True)
class FitSettings:
    """How each task is trained.

    Args:
        seed: keys every random draw.
        epochs: of every task, or one number for each task.
        batch_size: samples in a global batch, all processes together.
        optimizer: parameters → optimizer.
        warmup: warm-up steps if an integer, a fraction of all steps if a float.
        gradient_clip: the largest norm of a gradient.
        precision, accelerator: as Lightning names them.
        every_epochs, every_minutes: how often the task in progress is saved; None is never.
        timeout_minutes: how long a process may keep the others waiting.
    """

    seed: int
    epochs: int | list[int]
    batch_size: int
    optimizer: Callable[[Iterable[torch.nn.Parameter]], Optimizer]
    warmup: int | float
    gradient_clip: float
    precision: str
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
        method: the continual-learning method.
        fit: how each task is trained.
        merge: the merge to keep up to date; None is none.
        repair: whether damaged files are trained again.
        logger: (path, config) → logger of Lightning, or None.
        devices: processes, or ``auto``.
        max_restarts: how often lost processes are started again.
    """

    run: Run
    config: dict[str, Any]
    inputs: Inputs
    method: Method
    fit: FitSettings
    merge: RunningMergeSettings | None
    repair: bool
    logger: Callable[..., Any]
    devices: int | str
    max_restarts: int


@dataclass(frozen=True)
class RunMerge:
    """What merge.py needs to merge a run.

    Args:
        run: the run directory.
        config: the resolved config, for the record.
        inputs: data and weights.
        method: the method of the training.
        bound: the strategy and its options.
        scales: values of λ; empty to select one on validation data.
        candidates: the values of λ to select from, in ascending order.
        prefixes: whether the merges of the first t tasks are evaluated, for every t.
        export: the format of an exported CLIP, or None.
        device: where to merge.
        compared: keys in which the run's config must agree with this one.
    """

    run: Run
    config: dict[str, Any]
    inputs: Inputs
    method: Method
    bound: BoundStrategy
    scales: list[float]
    candidates: list[float]
    prefixes: bool
    export: str | None
    device: torch.device
    compared: list[str]


@dataclass(frozen=True)
class FileMerge:
    """What merge.py needs to merge files that this project did not write.

    Args:
        inputs: the CLIP to export.
        bound: the strategy and its options.
        base, checkpoints, out: paths.
        scales: values of λ.
        several: whether each λ gets a path of its own, see `merge_checkpoints`.
        dtype, on_mismatch, device: see `merge_checkpoints`.
        export: the format of an exported CLIP, or None.
    """

    inputs: Inputs
    bound: BoundStrategy
    base: str
    checkpoints: list[str]
    out: str
    scales: list[float]
    several: bool
    dtype: str | None
    on_mismatch: str
    device: torch.device
    export: str | None


@dataclass(frozen=True)
class AnalysisSettings:
    """What analyze.py needs.

    Args:
        run: the run directory.
        inputs: data and weights.
        analysis: ``analysis(subject) -> (table, figure)``, with its options bound.
        bound: the strategy and its options.
        scale: λ.
        words: (group, override) of what was typed about the analysis itself.
        compared: keys in which the run's config must agree with this one.
    """

    run: Run
    inputs: Inputs
    analysis: partial[Any]
    bound: BoundStrategy
    scale: float
    words: list[tuple[str, str]]
    compared: list[str]


@dataclass(frozen=True)
class ReportSettings:
    """What report.py needs: the folder with the results, the one for the report, and the name of the baseline."""

    root: Path
    out: Path
    baseline: str | None


def training_settings(cfg: DictConfig, run: Run | None = None) -> TrainingSettings:
    """Check a config of train.yaml and return its settings; neither data nor weights are touched.

    Args:
        cfg: the composed config.
        run: the run, for a process that cannot see the command line; None takes it from `cfg`.

    Raises:
        UserError: if a value breaks its rule.
    """
    OmegaConf.resolve(cfg)
    checks.check_training(cfg)
    allowed = cfg.allow_targets
    method: Method = build(cfg.method, allowed)
    fit = FitSettings(
        seed=cfg.seed,
        epochs=list(cfg.epochs) if isinstance(cfg.epochs, ListConfig) else cfg.epochs,
        batch_size=cfg.batch_size,
        optimizer=build(cfg.optimizer, allowed),
        warmup=cfg.schedule.warmup,
        gradient_clip=cfg.gradient_clip,
        precision=cfg.precision,
        accelerator=cfg.accelerator,
        every_epochs=cfg.checkpoint.every_epochs,
        every_minutes=cfg.checkpoint.every_minutes,
        timeout_minutes=cfg.launcher.timeout_minutes,
    )
    return TrainingSettings(
        run=run or run_of(cfg, [word for _, word in typed(without=NAMING_KEYS)]),
        config=_recorded(cfg),
        inputs=Inputs(cfg),
        method=method,
        fit=fit,
        merge=_running_merge(cfg, method) if cfg.merge_every_task else None,
        repair=cfg.repair,
        logger=partial(build, cfg.logger, allowed),
        devices=cfg.devices,
        max_restarts=cfg.launcher.max_restarts,
    )


def merge_settings(cfg: DictConfig, shared: dict[str, Any]) -> RunMerge | FileMerge:
    """Check a config of merge.yaml and return its settings.

    Args:
        cfg: the composed config.
        shared: see `Inputs`.

    Raises:
        UserError: if a value breaks its rule.
    """
    OmegaConf.resolve(cfg)
    checks.check_merge(cfg)
    bound = _bound_strategy(cfg)
    paths = ("base", "checkpoints", "out")
    given = [key for key in paths if cfg[key] is not None]
    if given:
        if missing := [key for key in paths if key not in given]:
            raise UserError(f"base, checkpoints and out go together; got {given[0]} without {missing[0]}")
        return _file_merge(cfg, bound, shared)
    for key in ("dtype", "on_mismatch"):
        if cfg[key] not in (None, "error"):
            raise UserError(
                f"{key} is for base, checkpoints and out; the encoders of a run agree; got {key}={cfg[key]}"
            )
    checks.check_stream(cfg)
    run, compared = _trained_run(cfg, MERGE_KEYS)
    return RunMerge(
        run=run,
        config=_recorded(cfg),
        inputs=Inputs(cfg, shared),
        method=build(cfg.method, cfg.allow_targets),
        bound=bound,
        scales=_scales(cfg),
        candidates=sorted(map(float, cfg.candidates)) if cfg["lambda"] == checks.SELECT else [],
        prefixes=cfg.prefixes,
        export=cfg.export,
        device=_merging_device(cfg),
        compared=compared,
    )


def analysis_settings(cfg: DictConfig, shared: dict[str, Any]) -> AnalysisSettings:
    """Check a config of analyze.yaml and return its settings.

    Args:
        cfg: the composed config.
        shared: see `Inputs`.

    Raises:
        UserError: if a value breaks its rule.
    """
    OmegaConf.resolve(cfg)
    checks.check_analysis(cfg)
    run, compared = _trained_run(cfg, ANALYSIS_KEYS)
    (scale,) = _scales(cfg)
    return AnalysisSettings(
        run=run,
        inputs=Inputs(cfg, shared),
        analysis=build(cfg.analysis, cfg.allow_targets),
        bound=_bound_strategy(cfg),
        scale=scale,
        words=[(key.split(".")[0], word) for key, word in typed() if key.split(".")[0] in ANALYSIS_KEYS],
        compared=compared,
    )


def report_settings(cfg: DictConfig) -> ReportSettings:
    """Check a config of report.yaml and return its settings.

    Raises:
        UserError: if root is no folder, or out is a file.
    """
    OmegaConf.resolve(cfg)
    checks.check_report(cfg)
    return ReportSettings(Path(cfg.root), Path(cfg.out), cfg.baseline)


def run_of(cfg: DictConfig, extra: Sequence[str] = ()) -> Run:
    """Return the run that a config names.

    Args:
        cfg: a composed config of train.yaml, merge.yaml or analyze.yaml.
        extra: overrides that its command needs besides those that name the run.
    """
    names = {
        "dataset": str(cfg.dataset.name),
        "stream": str(cfg.stream.name),
        "model": str(cfg.model.name),
        "method": str(cfg.method.id),
    }
    options = {group: chosen(group, names[group]) for group in ("dataset", "model", "method")}
    tag = None if cfg.tag is None else str(cfg.tag)
    return Run(Path(cfg.root), **names, tasks=cfg.tasks, seed=cfg.seed, tag=tag, options=options, extra=tuple(extra))


def _trained_run(cfg: DictConfig, own_keys: Iterable[str]) -> tuple[Run, list[str]]:
    """Return the finished run that a config names, and the keys in which both must agree."""
    run = run_of(cfg, [word for _, word in typed(without=(*own_keys, *NAMING_KEYS))])
    return run, [*COMPARED, *(key for key, _ in typed(without=own_keys))]


def _recorded(cfg: DictConfig) -> dict[str, Any]:
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def _bound_strategy(cfg: DictConfig) -> BoundStrategy:
    bound: partial[Any] = build(cfg.strategy, cfg.allow_targets, without=("scale",))
    strategy: Any = bound.func
    return strategy.bind(bound.keywords, seed=cfg.seed)


def _scales(cfg: DictConfig) -> list[float]:
    """Return λ: the given values, or the strategy's own; none where it is to be selected."""
    value = cfg["lambda"]
    if value == checks.SELECT:
        return []
    if value is None:
        return [float(cfg.strategy.scale)]
    return [float(v) for v in value] if isinstance(value, ListConfig) else [float(value)]


def _running_merge(cfg: DictConfig, method: Method) -> RunningMergeSettings:
    if method.data != "task":
        raise UserError(
            f"merge_every_task=true needs a method with an encoder for each task; got method={cfg.method.id}"
        )
    bound = _bound_strategy(cfg)
    bound.strategy.require_running()
    (scale,) = _scales(cfg)
    return RunningMergeSettings(bound, scale, cfg.keep_tasks)


def _file_merge(cfg: DictConfig, bound: BoundStrategy, shared: dict[str, Any]) -> FileMerge:
    scales, several = _scales(cfg), isinstance(cfg["lambda"], ListConfig)
    if not scales:
        raise UserError("lambda=select needs the validation data of a run; for base and checkpoints give a number")
    if cfg.export is not None and (several or Path(cfg.out).suffix != ".safetensors"):
        raise UserError(f"export needs one merged file, out=….safetensors; got out={cfg.out}, lambda={cfg['lambda']}")
    return FileMerge(
        inputs=Inputs(cfg, shared),
        bound=bound,
        base=cfg.base,
        checkpoints=list(cfg.checkpoints),
        out=cfg.out,
        scales=scales,
        several=several,
        dtype=cfg.dtype,
        on_mismatch=cfg.on_mismatch,
        device=_merging_device(cfg),
        export=cfg.export,
    )


def _merging_device(cfg: DictConfig) -> torch.device:
    """Merging is bound by reading, so it takes a GPU only where one is asked for."""
    return device_of("gpu") if cfg.accelerator == "gpu" else torch.device("cpu")
