"""Read every result under a root into one table, and list what the report leaves out."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mergestream.reporting.retention import retention
from mergestream.reporting.rows import DOMAIN_MEASURES, MEASURES, ROW
from mergestream.runs.directory import stream_folder
from mergestream.runs.identity import deciding, equal_hash
from mergestream.runs.results import SCHEMA_VERSION, Metrics
from mergestream.runtime import files
from mergestream.runtime.errors import UserError, program

HASHES = ["protocol", "data", "source"]  # columns for comparisons, which no reader needs
# The keys of a protocol that decide the samples, in whatever order, and θ₀.
SOURCE = ("dataset.", "stream.", "base_sha256")
REQUIRED = {"kind", "config", "zero_shot", "accuracy", "overall", "seen", "summary", "timing", "environment"}
REQUIRED |= {"provenance"}
# The option that takes the place of λ, by the name of the calibration.
AS_SCALE = {"align": "coefficient", "lines": "beta"}


@dataclass(frozen=True)
class LeftOut:
    """Something under the root that the report leaves out.

    Args:
        path: the file or folder.
        reason: a sentence about it.
        expected: whether nothing is wrong with it, such as a run that has not finished.
    """

    path: Path
    reason: str
    expected: bool = False


@dataclass(frozen=True)
class Collected:
    """The results under a root.

    Args:
        runs: one line for each metrics.json: the columns `ROW`, ``trained_tasks``, ``seed``, ``path``, ``seconds``,
            the measures as fractions (see `measures_of`), and three hashes. Runs of one row have the same ``protocol``;
            ``data`` is of the samples in their order; ``source`` is of the data set, the stream and θ₀, whatever the
            order and T.
        metrics: the contents of these files.
        protocols: the values behind the hashes ``protocol``.
        left_out: everything else.
    """

    runs: pd.DataFrame
    metrics: list[Metrics]
    protocols: list[dict[str, Any]]
    left_out: list[LeftOut]


@dataclass(frozen=True)
class _Training:
    """What a training and its merges share: the protocol, and two hashes of `Collected`."""

    protocol: dict[str, Any]
    protocol_hash: str
    source: str


@dataclass(frozen=True)
class _Result:
    """One metrics.json: its path, its run directory, its line in the table, its content and its protocol."""

    path: Path
    folder: Path
    line: dict[str, Any]
    metrics: Metrics
    protocol: dict[str, Any]

    def in_place(self) -> bool:
        """Return whether the run directory has the path that its config determines."""
        line = self.line
        tag = f"-{line['tag']}" if line["tag"] else ""
        tasks = line["tasks"] if self.metrics["config"].get("tasks", 0) is not None else None
        stream, seed = stream_folder(line["stream"], tasks), f"seed-{line['seed']}{tag}"
        return self.folder.resolve().parts[-5:] == (line["dataset"], stream, line["model"], line["method"], seed)


def collect(root: Path) -> Collected:
    """Read every run and merge under `root`."""
    results: list[_Result] = []
    left_out: list[LeftOut] = []
    trainings: dict[Path, _Training] = {}
    indices: dict[tuple[Any, ...], int] = {}
    for item in _walk(root):
        found = item if isinstance(item, LeftOut) else _load(item, trainings)
        if isinstance(found, LeftOut):
            left_out.append(found)
            continue
        index = indices.setdefault(tuple(found.line[key] for key in [*ROW, "seed"]), len(results))
        if index == len(results):
            results.append(found)
            continue
        kept, other = results[index], found
        if other.in_place() and not kept.in_place():  # a copy was found first
            kept, other = other, kept
        results[index] = kept
        left_out.append(
            LeftOut(
                other.path,
                f"a seed has one result, and {kept.path} has the same values. Delete one, or train it with tag=NAME",
            )
        )
    retained, stale, wrong = retention({result.path: result.metrics for result in results})
    left_out += [LeftOut(path, reason, expected=True) for path, reason in stale.items()]
    left_out += [LeftOut(path, reason) for path, reason in wrong.items()]
    for result in results:
        result.line.update(retained.get(result.path, {}))
    of_domains = [key for key in DOMAIN_MEASURES if any(not math.isnan(result.line[key]) for result in results)]
    columns = [*ROW, "trained_tasks", "seed", "path", *HASHES, "seconds", *MEASURES, *of_domains]
    columns += sorted({name for values in retained.values() for name in values})
    runs = pd.DataFrame([result.line for result in results], columns=columns)
    return Collected(runs, [r.metrics for r in results], [r.protocol for r in results], left_out)


def _walk(root: Path) -> Iterator[Path | LeftOut]:
    """Yield every metrics.json, those of runs before those of their merges, and every folder to leave out."""
    unreadable: list[OSError] = []
    for name, folders, names in os.walk(root, onerror=unreadable.append):
        folder = Path(name)
        if folder != root and "_base" in folders:
            folders.clear()
            reason = f"it is a separate root; for its report, type: {program('report')} root={folder}"
            yield LeftOut(folder, reason, expected=True)
            continue
        in_run = "config.yaml" in names
        folders[:] = sorted(below for below in folders if _may_hold_results(below, in_run))
        for link in [below for below in folders if os.path.islink(f"{name}/{below}")]:
            yield LeftOut(folder / link, "it is a link; links are not followed", expected=True)
        if "metrics.json" in names:
            yield folder / "metrics.json"
        elif in_run and "stream.json" in names:
            done = len(list(folder.glob("task-*/evaluation.json")))
            reason = f"it has not finished (tasks done: {done}); its command continues it"
            yield LeftOut(folder, reason, expected=True)
        elif "merged.safetensors" in names:
            reason = "it has not finished (it is not evaluated); its command continues it"
            yield LeftOut(folder, reason, expected=True)
    for error in unreadable:
        yield LeftOut(Path(error.filename), f"it cannot be read ({error.strerror})")


def _may_hold_results(name: str, in_run: bool) -> bool:
    """Return whether to search a folder, which may be inside a run directory."""
    return not name.startswith(("_", ".")) and not (in_run and (name == "logs" or name.startswith("task-")))


def _load(path: Path, trainings: dict[Path, _Training]) -> _Result | LeftOut:
    """Read one metrics.json.

    Args:
        path: the file.
        trainings: by run directory; that of a merge must be there, that of a training is added.
    """
    try:
        metrics = _read(path)
        training = metrics["kind"] == "train"
        folder = path.parent if training else path.parents[2]
        line = _line(metrics, path)
        if training:
            trainings[folder] = _training(metrics)
        elif folder not in trainings:
            unfinished = not (folder / "metrics.json").exists()
            reason = "its training has not finished" if unfinished else "its training is left out"
            return LeftOut(path, reason, expected=unfinished)
        shared, merging = trainings[folder], _merge_protocol(metrics)
        line |= {"protocol": equal_hash([shared.protocol_hash, merging]), "source": shared.source}
        return _Result(path, folder, line, metrics, {**shared.protocol, **merging})
    except (UserError, OSError) as error:
        return LeftOut(path, str(error))
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        return LeftOut(path, f"it is not a metrics.json of this version ({type(error).__name__}: {error})")


def _read(path: Path) -> Metrics:
    """Return the content of a metrics.json.

    Raises:
        UserError: if it is damaged, or written by another program or version.
    """
    try:
        content = files.read_json(path, own=True)
    except UserError as error:
        try:
            foreign = "schema_version" not in files.read_json(path)
        except UserError:
            foreign = False
        reason = "it was not written by mergestream (it has no schema_version)" if foreign else str(error)
        raise UserError(reason) from error
    if content["schema_version"] != SCHEMA_VERSION:
        raise UserError(f"its schema_version is {content['schema_version']}; this version reads {SCHEMA_VERSION}")
    if missing := REQUIRED - content.keys():
        raise UserError(f"it is not a metrics.json of this version (it has no {min(missing)})")
    return content  # type: ignore[return-value]


def _line(metrics: Metrics, path: Path) -> dict[str, Any]:
    """Return the columns of `Collected.runs` that one file determines.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: if a value is missing or malformed.
    """
    _require_matrices(metrics)
    config, merge, tasks = metrics["config"], metrics.get("merge"), len(metrics["zero_shot"]["task_agnostic"])
    summary = metrics["summary"]
    keys = [*MEASURES, *DOMAIN_MEASURES]
    measures = {key: float("nan") if summary.get(key) is None else float(summary[key]) for key in keys}
    return {
        "dataset": str(config["dataset"]["name"]),
        "stream": str(config["stream"]["name"]),
        "tasks": tasks,
        "trained_tasks": tasks,  # `borrow_bounds` changes the tasks
        "model": str(config["model"]["name"]),
        "method": str(config["method"]["id"]),
        **(_rule(merge) if merge else dict.fromkeys(("strategy", "options", "scale"), "")),
        "tag": str(config["tag"]) if config.get("tag") is not None else "",
        "seed": int(config["seed"]),
        "path": str(path),
        "seconds": metrics["timing"]["total"],
        "data": metrics["provenance"].get("data_sha256", ""),
        **measures,
        "final_accuracy": float(summary["final_accuracy"]),
    }


def _rule(merge: Mapping[str, Any]) -> dict[str, str]:
    """Return what the columns of a row say of how a merge was made."""
    calibration, changed = merge.get("calibration", {}), dict(merge["changed"])
    scale = merge["scale"]
    if (key := AS_SCALE.get(calibration.get("name"))) and "selected_on" not in merge:
        if scale != 1:
            changed["lambda"] = scale
        scale = calibration[key]
        changed.pop(f"calibration.{key}", None)
    # Runs of one row share the rule, not the number, if it was selected on validation data.
    selected = "selected_on" in {**merge, **calibration}
    return {
        "strategy": merge["strategy"],
        "options": ", ".join(f"{k} = {v}" for k, v in sorted(changed.items())),
        "scale": "selected" if selected else f"{scale:.12g}",
    }


def _require_matrices(metrics: Metrics) -> None:
    steps = len(metrics["overall"])
    agnostic = [metrics["zero_shot"]["task_agnostic"], *metrics["accuracy"]["task_agnostic"]]
    aware = [metrics["zero_shot"]["task_aware"], *metrics["accuracy"]["task_aware"]]
    for name, rows in (("task_agnostic", agnostic), ("task_aware", aware)):
        widths = {len(row) for row in rows if row is not None}
        if len(rows) != steps + 1 or rows[-1] is None or len(widths) != 1:
            raise ValueError(f"{name} is not a matrix of {steps} rows")
    if len(metrics["seen"]) != steps:
        raise ValueError(f"seen does not have {steps} steps")


def _training(metrics: Metrics) -> _Training:
    """Return what the result of a training depends on besides its seed: config, θ₀ and version."""
    protocol = {key: value for key, value in deciding(metrics["config"]).items() if key != "seed"}
    protocol["base_sha256"] = metrics["provenance"].get("base_sha256")
    protocol["version"] = metrics["environment"]["mergestream"]
    source = {key: value for key, value in protocol.items() if key.startswith(SOURCE)}
    return _Training(protocol, equal_hash(protocol), equal_hash(source))


def _merge_protocol(metrics: Metrics) -> dict[str, Any]:
    """Return what the result of a merge depends on besides its training and the columns of its row."""
    if metrics["kind"] == "train":
        return {}
    protocol: dict[str, Any] = {"merged by version": metrics["environment"]["mergestream"]}
    if "selected_on" in {**metrics["merge"], **metrics["merge"].get("calibration", {})}:
        protocol["candidates"] = metrics["config"]["candidates"]
    return protocol
