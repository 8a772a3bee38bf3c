"""merge.py: merge the encoders of a run, and evaluate the result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from mergestream.calibration import BINS, CalibrationError, Temperature
from mergestream.compose.keys import SELECT
from mergestream.compose.merging import RunMerge
from mergestream.compose.overrides import MERGE_KEYS
from mergestream.evaluation import Evaluator, Observer
from mergestream.merging.accumulate import Accumulation, RunningMerge
from mergestream.merging.encoder import apply, describe, write_merged
from mergestream.merging.engine import merged_task_vector
from mergestream.merging.export import Labels, export_merge, labels_of_run
from mergestream.merging.summary import show
from mergestream.merging.tensors import TensorFile, is_statistic
from mergestream.metrics import Counts
from mergestream.runs.directory import readable
from mergestream.runs.results import Metrics, assemble, zero_shot_counts
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.lock import held
from mergestream.strategies.adjustments import PLAIN
from mergestream.strategies.strategy import BoundStrategy

OWN_KEYS = (*MERGE_KEYS, "root", "accelerator", "data")  # parts of the config that a merge takes from its own command

MergedTaskVector = tuple[dict[str, Tensor], list[str]]  # with the content hashes of θ₀ and the encoders


def merge_run(settings: RunMerge) -> bool:
    """Merge the encoders of a run, evaluate the result, and write both to the run's ``merges`` folder.

    Returns:
        Whether a merge was written that was not there before.

    Raises:
        UserError: if the run is missing, unfinished or damaged, or does not fit the command.
    """
    run = settings.run
    run.require_finished()
    run.require_same(settings.config, settings.compared)
    trained = run.result()
    if settings.method.data == "none":
        raise UserError(f"a merge needs trained encoders; method={settings.method.id} trains none. Try method=seq.")
    folders = _folders(settings)
    if all(_is_done(settings, folder) for folder in folders):
        _show_again(settings, trained, folders)
        return False
    _require_adjustable(settings)
    merging = _Merging(settings, trained)
    tried = merging.select() if settings.selected else {}
    # Of equally good candidates, the first is the smallest.
    found = merging.take(max(tried, key=lambda value: tried[value])) if tried else settings.scales
    evaluated = merging.evaluate(found)
    for scale, folder in zip(found, folders, strict=True):
        show(trained, folder, merging.write(folder, scale, evaluated, tried))
    return True


def seconds_of(settings: RunMerge) -> float | None:
    """Return how long a merge that is finished took; None if it is not."""
    folders = _folders(settings)
    if not settings.run.finished() or not all(_is_done(settings, folder) for folder in folders):
        return None
    return files.read_json(folders[0] / "metrics.json", "timing", own=True)["timing"]["total"]


def _folders(settings: RunMerge) -> list[Path]:
    """Return the folder of the merge with each λ."""
    scales: list[float | str] = [*settings.scales] or [SELECT]
    return [settings.run.path / "merges" / settings.bound.folder(scale, settings.changed) for scale in scales]


def _require_adjustable(settings: RunMerge) -> None:
    """Check that the adjustments fit the run.

    Raises:
        UserError: if they need another number of tasks, other weights, or encoders that were not kept.
    """
    run, adjustments = settings.run, settings.bound.adjustments
    if adjustments == PLAIN:
        return
    if not run.keeps_tasks():
        key = next(iter(adjustments.changed))
        raise UserError(
            f"{key} needs the encoder of each task; this run was trained with keep_tasks=false. Leave {key} out, or "
            "train with keep_tasks=true"
        )
    adjustments.require_tasks(1 if settings.method.data == "all" else len(run.stream()["tasks"]))
    base = TensorFile(run.base_file())
    base.close()
    adjustments.require_matches([[name] for name, entry in base.entries.items() if entry.dtype.is_floating_point])
    adjustments.require_blocks(base.entries)


@dataclass(frozen=True)
class _Evaluated:
    """The merge of all tasks, and its evaluation for each λ.

    Args:
        merged: the merged task vector, and the hashes of its inputs.
        seen: how many tasks each evaluated merge has seen.
        rows: for each λ, the counts of each of these merges.
    """

    merged: MergedTaskVector
    seen: list[int]
    rows: dict[float, list[Counts]]


class _Merging:
    """A run that is being merged: opens its data and encoders, and measures the time that each stage takes.

    Args:
        settings: of the command.
        trained: the results of the training.
    """

    def __init__(self, settings: RunMerge, trained: Metrics):
        self.settings, self.trained = settings, trained
        self.bound = settings.bound  # with the option of the calibration that is being tried, or was chosen
        self.began = time.monotonic()
        self.timing: dict[str, float] = {}
        with self._timed("setup"):
            self.evaluator: Evaluator = settings.inputs.evaluator(settings.run.decided("eval_precision"))
            self.stream = self.evaluator.stream
            settings.run.require_data(self.stream.describe())
            settings.run.require_preprocessing(self.evaluator.preprocessing)
            if settings.selected and not self.stream.can_validate and settings.former is None:
                raise UserError(
                    f"{settings.selected}=select needs validation data, which are split off the training data; this "
                    "run has none. Train and merge with stream.validation=0.1"
                )
            self.joint = settings.method.data == "all"
            self.encoders = 1 if self.joint else len(self.stream)
            base_file = settings.run.base_file()
            self.merged_of = _merges(settings, self.encoders, base_file)
            self.zero_shot = zero_shot_counts(trained)  # of the same θ₀ and images
            self.base = files.read_tensors(base_file)
            self.temperatures: dict[float, float] = {}  # chosen on validation images, by λ
            self.errors: dict[float, list[CalibrationError]] = {}  # on the test images, by λ: plain, with temperature
            self.statistics: dict[tuple[float, int], dict[str, Tensor]] = {}  # recomputed, by λ and tasks
            if settings.bn != "average" and not any(map(is_statistic, self.base)):
                raise UserError(
                    f"bn={settings.bn} is for image towers with batch normalisation; model={settings.run.model} has "
                    "none. Leave it out"
                )

    def select(self) -> dict[float, float]:
        """Return the validation accuracy of each candidate; of the former one alone if images are gone."""
        key = self.settings.selected
        if not self.stream.can_validate:
            assert self.settings.former is not None  # checked at the start
            name = "λ" if key == "lambda" else key
            print(f"{name} = {self.settings.former:g} stays as it was chosen, since validation images are gone")
            return {self.settings.former: float("nan")}
        with self._timed("selection"):
            tried: dict[float, float] = {}
            for candidate in self.settings.candidates:
                (scale,) = self.take(candidate)
                if key != "lambda" or not tried:
                    tau, _ = self.merged_of(self.encoders, self.bound)
                theta = self._weights(tau, scale, len(self.stream))
                counts = self._validate(theta, scale)
                tried[candidate] = sum(counts["agnostic"]) / sum(counts["total"])
            return tried

    def take(self, value: float) -> list[float]:
        """Merge with a value of what is selected from now on; return the values of λ."""
        if self.settings.selected == "lambda":
            return [value]
        adjustments = self.settings.bound.adjustments
        assert adjustments.calibration is not None
        taken = replace(adjustments, calibration=adjustments.calibration.with_value(value))
        self.bound = replace(self.settings.bound, adjustments=taken)
        # What was measured with another value has the same λ.
        self.temperatures.clear()
        self.statistics.clear()
        return self.settings.scales

    def _validate(self, theta: Mapping[str, Tensor], scale: float) -> Counts:
        """Evaluate the merge of all tasks on the validation images, and choose its temperature there."""
        found = Temperature()
        counts = self.evaluator.counts(theta, len(self.stream), "validation", observe=found.update)
        self.temperatures[scale] = found.compute()
        return counts

    def evaluate(self, scales: Sequence[float]) -> _Evaluated:
        """Merge all tasks, with ``prefixes`` also the first t for every t, and evaluate each merge with each λ."""
        seen: list[int] = []
        rows: dict[float, list[Counts]] = {scale: [] for scale in scales}
        for count in range(1 if self.settings.prefixes else self.encoders, self.encoders + 1):
            with self._timed("merging"):
                merged = self.merged_of(count, self.bound)
            seen.append(len(self.stream) if self.joint else count)
            for scale in scales:
                with self._timed("merging"):
                    theta = self._weights(merged[0], scale, seen[-1])
                with self._timed("evaluation"):
                    observe = self._calibrated(theta, scale) if count == self.encoders else None
                    rows[scale].append(self.evaluator.counts(theta, seen[-1], observe=observe))
        self.timing["total"] = time.monotonic() - self.began
        return _Evaluated(merged, seen, rows)

    def _calibrated(self, theta: Mapping[str, Tensor], scale: float) -> Observer:
        """Return what measures the calibration of the merge of all tasks in the pass over the test images.

        A temperature is chosen on the validation images if there are any.
        """
        if scale not in self.temperatures and self.stream.can_validate:
            self._validate(theta, scale)
        temperatures = [1.0, *([self.temperatures[scale]] if scale in self.temperatures else [])]
        self.errors[scale] = errors = [CalibrationError(temperature) for temperature in temperatures]

        def observe(logits: Tensor, labels: Tensor) -> None:
            for error in errors:
                error.update(logits, labels)

        return observe

    def write(self, folder: Path, scale: float, evaluated: _Evaluated, tried: Mapping[float, float]) -> Metrics:
        """Write the merged encoder of one λ, its exports and its metrics.json; return the metrics."""
        tau, inputs = evaluated.merged
        theta = self._weights(tau, scale, evaluated.seen[-1])
        with held(folder):
            files.remove_partials(folder)
            write_merged(folder / "merged.safetensors", theta, self.bound, scale, inputs, self.settings.changed)
            metrics = self._metrics(scale, evaluated, tried)
            source, clip = self.stream.source, self.evaluator.clip
            labels = Labels(source.class_names, source.prompts, self.evaluator.head)
            for form in self.settings.exports:
                export_merge(form, clip, labels, theta, metrics, folder)
            files.write_json(folder / "metrics.json", metrics)  # last: it says that all is there
        return metrics

    def _weights(self, tau: Mapping[str, Tensor], scale: float, seen: int) -> dict[str, Tensor]:
        """Return the weights of a merge of the first `seen` tasks, with the running statistics that ``bn`` names."""
        theta = apply(self.base, tau, scale)
        if self.settings.bn == "base":
            theta |= {name: tensor for name, tensor in self.base.items() if is_statistic(name)}
        elif self.settings.bn == "recompute":
            if (scale, seen) not in self.statistics:
                self.statistics[scale, seen] = self.evaluator.statistics(theta, seen)
            theta |= self.statistics[scale, seen]
        return theta

    def _metrics(self, scale: float, evaluated: _Evaluated, tried: Mapping[float, float]) -> Metrics:
        trained = self.trained
        # The command need not repeat the config of the training, but the record holds it.
        config = self.settings.config | {k: value for k, value in trained["config"].items() if k not in OWN_KEYS}
        config["eval_precision"] = self.evaluator.precision
        rows, heads = evaluated.rows[scale], [task.classes for task in self.stream.tasks]
        metrics = assemble("merge", config, self.zero_shot, rows, evaluated.seen, self.timing, heads=heads)
        metrics["merge"] = describe(self.bound, scale, tried, self.settings.changed, self.settings.selected or "lambda")
        # Runs of one row of the report share the rule, not the number.
        metrics["merge"]["changed"] = {**self.settings.bound.changed, **self.settings.changed}
        metrics["provenance"] |= {key: trained["provenance"][key] for key in ("base_sha256", "data_sha256")}
        error, *cooled = (found.compute() for found in self.errors[scale])
        metrics["calibration"] = {
            "bins": BINS,
            "ece": error,
            "temperature": self.temperatures.get(scale),
            "ece_with_temperature": cooled[0] if cooled else None,
        }
        return metrics

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.timing[stage] = self.timing.get(stage, 0.0) + time.monotonic() - began


def _merges(settings: RunMerge, encoders: int, base: Path) -> Callable[[int, BoundStrategy], MergedTaskVector]:
    """Return a function that merges the first `count` encoders of a run.

    Raises:
        UserError: if encoders are missing, and no running merge stands in for them.
    """
    run, bound = settings.run, settings.bound
    running = run.running(bound.strategy.name)
    if run.keeps_tasks() or not running.is_file():
        paths, parameters = run.trained_encoders(encoders), run.base()["clip_parameters"]
        prefixes = Accumulation(bound)  # reads each encoder once, where one merge after the other would read T² / 2
        strategy = bound.strategy  # with `needs`, its sums may not fit in memory
        continues = settings.prefixes and strategy.running and not strategy.needs and bound.adjustments == PLAIN

        def merged_anew(count: int, bound: BoundStrategy) -> MergedTaskVector:
            if continues and count == prefixes.tasks + 1:
                prefixes.add(base, paths[prefixes.tasks])
                return prefixes.task_vector()
            of_some = replace(bound, adjustments=bound.adjustments.of_first(count))
            return merged_task_vector(
                base, paths[:count], of_some, clip_parameters=parameters, device=settings.device, say=print
            )

        last: list[tuple[int, BoundStrategy, MergedTaskVector]] = []  # a selection ends in what it has merged before

        def merged(count: int, bound: BoundStrategy) -> MergedTaskVector:
            if not last or last[0][:2] != (count, bound):
                last[:] = [(count, bound, merged_anew(count, bound))]
            return last[0][2]

        return merged
    kept = RunningMerge(running, bound)
    if kept.tasks != encoders:
        raise UserError(
            f"{readable(running)} must hold the merge of {encoders} tasks; it holds {kept.tasks}. Delete the run and "
            "train it again"
        )

    def whole(count: int, _bound: BoundStrategy) -> MergedTaskVector:
        if count < encoders:
            raise UserError("prefixes=true needs every encoder; this run was trained with keep_tasks=false")
        return kept.task_vector()

    return whole


def _is_done(settings: RunMerge, folder: Path) -> bool:
    """Return whether a folder holds what the command asks for, undamaged and newer than the encoders of the run."""
    path, merged = folder / "metrics.json", folder / "merged.safetensors"
    if not path.is_file() or not merged.is_file():
        return False
    try:
        made = files.read_json(path, "config", own=True)["config"]
        files.verify(merged)
    except UserError as error:
        print(f"{error}; merging again")
        return False
    enough = made.get("prefixes") or not settings.prefixes  # prefixes include the merge of all tasks
    same = settings.selected is None or made.get("candidates") == settings.config["candidates"]
    return bool(enough and same and path.stat().st_mtime_ns > settings.run.metrics.stat().st_mtime_ns)


def _show_again(settings: RunMerge, trained: Metrics, folders: Sequence[Path]) -> None:
    """Show finished merges, and export them if that is asked for."""
    print("already merged" if settings.exports else "already merged, nothing to do")
    clip = settings.inputs.clip() if settings.exports else None
    for folder in folders:
        metrics = files.read_json(folder / "metrics.json", "summary", "merge")
        for form in settings.exports:
            assert clip is not None  # there is something to export
            with held(folder):
                theta = files.read_tensors(folder / "merged.safetensors")
                export_merge(form, clip, labels_of_run(settings, form, clip), theta, metrics, folder)
        show(trained, folder, metrics)
