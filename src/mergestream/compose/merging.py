"""The settings of merge.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig

from mergestream.compose import checks, keys
from mergestream.compose.build import device_of, method_of
from mergestream.compose.inputs import Inputs
from mergestream.compose.overrides import MERGE_KEYS, require_read
from mergestream.compose.run import recorded, resolve, trained_run
from mergestream.compose.strategy import bound_strategy, scales_of
from mergestream.methods.method import Method
from mergestream.runs.directory import Run, readable
from mergestream.runtime import files, processes
from mergestream.runtime.errors import UserError
from mergestream.runtime.rules import require_numbers
from mergestream.strategies.strategy import BoundStrategy

ONNX = ("onnx", "onnxscript")  # what torch's exporter needs


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
        candidates: the values of λ, or of an option of the calibration, to select from, in ascending order.
        prefixes: whether the merges of the first t tasks are evaluated, for every t.
        bn: the running statistics of batch normalisation that the merge has: average (of the tasks), base, or recompute
            (on the training images of the tasks).
        exports: the formats in which the merge is exported.
        device: where to merge.
        compared: keys in which the run's config must agree with this one.
        former: the value that was selected before tasks arrived, for when validation images are gone.
    """

    run: Run
    config: dict[str, Any]
    inputs: Inputs
    method: Method
    bound: BoundStrategy
    scales: list[float]
    candidates: list[float]
    prefixes: bool
    bn: str
    exports: tuple[str, ...]
    device: torch.device
    compared: list[str]
    former: float | None = None

    @property
    def selected(self) -> str | None:
        """The config key whose value is selected on validation data: λ, an option of the calibration, or none."""
        calibration = self.bound.adjustments.calibration
        if calibration is not None and calibration.selected is not None:
            return f"calibration.{calibration.selected}"
        return None if self.scales else "lambda"

    @property
    def changed(self) -> dict[str, str]:
        """Settings that differ from their defaults, change the result and are not options of the strategy."""
        return {} if self.bn == "average" else {"bn": self.bn}


@dataclass(frozen=True)
class FileMerge:
    """What merge.py needs to merge files that this project did not write.

    Args:
        inputs: the CLIP to export.
        bound: the strategy and its options.
        base, checkpoints, out: paths.
        scales: values of λ.
        several: whether each λ gets a path of its own, see `merge_checkpoints`.
        dtype, on_mismatch, bn, overwrite, device: see `merge_checkpoints`.
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
    bn: str
    overwrite: bool
    device: torch.device
    export: str | None


def merge_settings(cfg: DictConfig, shared: dict[str, Any]) -> RunMerge | FileMerge:
    """Check a config of merge.yaml and return its settings.

    Args:
        cfg: the composed config.
        shared: see `Inputs`.

    Raises:
        UserError: if a value breaks its rule.
    """
    require_read(cfg)
    resolve(cfg)
    checks.check_merge(cfg)
    if cfg.export == "onnx":
        _require_onnx()
    bound = bound_strategy(cfg)
    paths = ("base", "checkpoints", "out")
    given = [key for key in paths if cfg[key] is not None]
    if given:
        if missing := [key for key in paths if key not in given]:
            raise UserError(f"base, checkpoints and out go together; got {given[0]} without {missing[0]}")
        return _file_merge(cfg, bound, shared)
    for key in ("dtype", "on_mismatch", "overwrite"):
        if cfg[key] not in (None, "error", False):
            raise UserError(
                f"{key} applies only when merging files (base, checkpoints, out); got {key}={cfg[key]}. Remove it"
            )
    checks.check_stream(cfg)
    return _run_merge(cfg, *trained_run(cfg, MERGE_KEYS), shared)


def outdated_merges(run: Run, config: Mapping[str, Any]) -> Iterator[RunMerge]:
    """Yield the settings of the merges of a run that lack tasks which have arrived since, from their own records.

    A merge that was exported is exported again, in each of the formats. One with weights for fewer tasks is left out.

    Args:
        run: the run.
        config: of its training, which says where the data are.

    Raises:
        UserError: if a record is damaged.
    """
    for path in sorted(run.path.glob("merges/*/metrics.json")):
        made = files.read_json(path, "config", "provenance", own=True)
        of_merge = "candidates" in made["config"]  # the training itself keeps the others up to date
        if of_merge and not run.is_current(made["provenance"]):
            exports = tuple(form for form, name in keys.EXPORTS.items() if (path.parent / name).exists())
            cfg = DictConfig({**made["config"], "data": config["data"]})
            settings = _run_merge(cfg, run, [], {})
            weights, tasks = settings.bound.adjustments.weights, len(run.stream()["tasks"])
            if weights is not None and len(weights) != tasks:
                processes.say(
                    f"{readable(path.parent)} stays as it is: it has {len(weights)} weights for {tasks} tasks"
                )
                continue
            values = {"lambda": made["merge"]["scale"]}
            values |= {f"calibration.{key}": value for key, value in made["merge"].get("calibration", {}).items()}
            yield replace(settings, exports=exports, former=values.get(settings.selected or "lambda"))


def _run_merge(cfg: DictConfig, run: Run, compared: list[str], shared: dict[str, Any]) -> RunMerge:
    bound, scales = bound_strategy(cfg), scales_of(cfg)
    bound.require_scales(scales)
    calibration = bound.adjustments.calibration
    option = None if calibration is None else calibration.selected
    if option is not None:
        _require_selectable(cfg, option)
    return RunMerge(
        run=run,
        config=recorded(cfg),
        inputs=Inputs(cfg, shared),
        method=method_of(cfg),
        bound=bound,
        scales=scales,
        candidates=sorted(map(float, cfg.candidates)) if option or not scales else [],
        prefixes=cfg.prefixes,
        bn=cfg.bn,
        exports=() if cfg.export is None else (cfg.export,),
        device=_merging_device(cfg),
        compared=compared,
    )


def _require_selectable(cfg: DictConfig, option: str) -> None:
    """Check that an option of the calibration can be selected: it alone, and from values that it may have."""
    key, value = f"calibration.{option}", cfg["lambda"]
    if value == keys.SELECT or isinstance(value, ListConfig):
        raise UserError(
            f"{key}={keys.SELECT} chooses {option} for one λ; got lambda={value}. Give a number to one of them"
        )
    require_numbers("candidates", list(cfg.candidates), f"0 or more, to choose {key} from", lambda x: x >= 0)


def _require_onnx() -> None:
    if missing := [name for name in ONNX if find_spec(name) is None]:
        raise UserError(
            f"export=onnx needs the packages {' and '.join(ONNX)}; {missing[0]} is not installed. "
            "Type: pip install 'mergestream[onnx]'"
        )


def _file_merge(cfg: DictConfig, bound: BoundStrategy, shared: dict[str, Any]) -> FileMerge:
    scales, several = scales_of(cfg), isinstance(cfg["lambda"], ListConfig)
    if not scales:
        raise UserError("lambda=select needs the validation data of a run; for base and checkpoints give a number")
    bound.require_chosen()
    if cfg.bn == "recompute":
        raise UserError(
            "bn=recompute takes the training images of a run; base, checkpoints and out have none. Write bn=average or "
            "bn=base"
        )
    if cfg.export in ("classifier", "onnx"):
        raise UserError(
            f"export={cfg.export} needs the classes of a run; base, checkpoints and out have none. Write "
            "export=open_clip or export=huggingface"
        )
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
        bn=cfg.bn,
        overwrite=cfg.overwrite,
        device=_merging_device(cfg),
        export=cfg.export,
    )


def _merging_device(cfg: DictConfig) -> torch.device:
    """Return the device: merging is limited by reading, so it uses a GPU only on request."""
    return device_of("gpu") if cfg.accelerator == "gpu" else torch.device("cpu")
