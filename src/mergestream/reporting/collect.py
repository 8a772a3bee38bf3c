"""Every result under a root as one table; what cannot be used is named, with the reason."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mergestream.reporting.rows import MEASURES, ROW
from mergestream.runs.identity import deciding, equal_hash
from mergestream.runs.results import SCHEMA_VERSION
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

HASHES = ["protocol", "data", "source"]  # columns that tell a reader nothing
# Keys of a protocol that say from which samples, in whatever order, and from which θ₀ a run comes.
SOURCE = ("dataset.", "stream.", "base_sha256")
KEYS = {"kind", "config", "zero_shot", "accuracy", "overall", "seen", "summary", "timing", "environment", "provenance"}


@dataclass(frozen=True)
class LeftOut:
    """Something under the root that is not in the report.

    Args:
        path: of the file or folder.
        reason: in words.
        sound: whether that is as it should be, as of a run that has not finished.
    """

    path: Path
    reason: str
    sound: bool = False


@dataclass(frozen=True)
class Collected:
    """What there is to report.

    Args:
        runs: a line for each metrics.json: the columns of `ROW`, ``trained_tasks``, ``seed``, ``path``, ``seconds``,
            the measures as fractions, and hashes: ``protocol`` of what its row must have in common, ``data`` of its
            samples in their order, ``source`` of data set, stream and θ₀ whatever the order and T.
        contents: what each of these files holds.
        left_out: what is not among them.
    """

    runs: pd.DataFrame
    contents: list[dict[str, Any]]
    left_out: list[LeftOut]


def collect(root: Path) -> Collected:
    """Read every run and merge under `root`."""
    lines: list[dict[str, Any]] = []
    contents: list[dict[str, Any]] = []
    left_out: list[LeftOut] = []
    protocols: dict[Path, dict[str, Any]] = {}
    hashes: dict[Path, str] = {}
    sources: dict[Path, str] = {}
    known: dict[tuple[Any, ...], int] = {}
    for path, problem in _walk(root):
        if problem is not None:
            left_out.append(problem)
            continue
        try:
            content = _read(path)
            folder = _folder(content, path)
            line = _line(content, path)
            if content["kind"] == "train":
                protocols[folder] = protocol(content)
                hashes[folder] = equal_hash(protocols[folder])
                source = {key: value for key, value in protocols[folder].items() if key.startswith(SOURCE)}
                sources[folder] = equal_hash(source)
            elif folder not in protocols:
                unfinished = not (folder / "metrics.json").exists()
                reason = "its training has not finished" if unfinished else "its training is left out"
                left_out.append(LeftOut(path, reason, sound=unfinished))
                continue
            content["protocol"] = {**protocols[folder], **(of_merge := _of_merge(content))}
            line |= {"protocol": equal_hash([hashes[folder], of_merge]), "source": sources[folder]}
        except (UserError, OSError) as error:
            left_out.append(LeftOut(path, str(error)))
            continue
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            left_out.append(LeftOut(path, f"it is no metrics.json of this version ({type(error).__name__}: {error})"))
            continue
        same = tuple(line[key] for key in [*ROW, "seed"])
        place = known.setdefault(same, len(lines))
        if place == len(lines):
            lines.append(line)
            contents.append(content)
            continue
        other = Path(lines[place]["path"])
        if _in_place(line, folder) and not _in_place(line, _folder(contents[place], other)):  # a copy came first
            lines[place], contents[place], path, other = line, content, other, path
        again = f"a seed has one result, and {other} has the same values. Delete one, or train it with tag=NAME"
        left_out.append(LeftOut(path, again))
    columns = [*ROW, "trained_tasks", "seed", "path", "protocol", "data", "source", "seconds", *MEASURES]
    return Collected(pd.DataFrame(lines, columns=columns), contents, left_out)


def _walk(root: Path) -> Iterator[tuple[Path, LeftOut | None]]:
    """Every metrics.json, the runs' before their merges'; and what is no finished run."""
    unreadable: list[OSError] = []
    for folder, below, names in os.walk(root, onerror=unreadable.append):
        path = Path(folder)
        if path != root and "_base" in below:
            below.clear()
            yield (
                path,
                LeftOut(path, f"it is a root of its own; its report is python report.py root={path}", sound=True),
            )
            continue
        in_run = "config.yaml" in names
        below[:] = sorted(
            name
            for name in below
            if not name.startswith(("_", ".")) and not (in_run and (name == "logs" or name.startswith("task-")))
        )
        for link in [name for name in below if os.path.islink(f"{folder}/{name}")]:
            yield path / link, LeftOut(path / link, "it is a link, which is not followed", sound=True)
        if "metrics.json" in names:
            yield path / "metrics.json", None
        elif "config.yaml" in names and "stream.json" in names:
            done = len(list(path.glob("task-*/evaluation.json")))
            yield path, LeftOut(path, f"it has not finished (tasks done: {done}); its command continues it", sound=True)
        elif "merged.safetensors" in names:
            again = "it has not finished (it is not evaluated); its command continues it"
            yield path, LeftOut(path, again, sound=True)
    for error in unreadable:
        yield Path(error.filename), LeftOut(Path(error.filename), f"it cannot be read ({error.strerror})")


def _folder(content: Mapping[str, Any], path: Path) -> Path:
    """The run that a metrics.json belongs to."""
    return path.parent if content["kind"] == "train" else path.parents[2]


def _in_place(line: Mapping[str, Any], folder: Path) -> bool:
    """Whether the run lies where its values say."""
    tag = f"-{line['tag']}" if line["tag"] else ""
    stream, seed = f"{line['stream']}-{line['tasks']}", f"seed-{line['seed']}{tag}"
    return folder.resolve().parts[-5:] == (line["dataset"], stream, line["model"], line["method"], seed)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = files.read_json(path, own=True)
    except UserError as error:
        try:
            foreign = "schema_version" not in files.read_json(path)
        except UserError:
            foreign = False
        raise UserError("it is not of mergestream (it has no schema_version)" if foreign else str(error)) from error
    if content["schema_version"] != SCHEMA_VERSION:
        raise UserError(f"its schema_version is {content['schema_version']}; this version reads {SCHEMA_VERSION}")
    if missing := KEYS - content.keys():
        raise UserError(f"it is no metrics.json of this version (it has no {min(missing)})")
    return content


def _line(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The columns of `collect` that one file fills.

    Raises:
        KeyError, TypeError, ValueError, AttributeError, IndexError: if it does not hold what such a file holds.
    """
    _require_matrices(content)
    config, merge = content["config"], content.get("merge")
    changed = ", ".join(f"{key} = {value}" for key, value in sorted(merge["changed"].items())) if merge else ""
    line = {
        "dataset": str(config["dataset"]["name"]),
        "stream": str(config["stream"]["name"]),
        "tasks": len(content["zero_shot"]["task_agnostic"]),
        "trained_tasks": len(content["zero_shot"]["task_agnostic"]),  # `with_bounds` lends rows to other T
        "model": str(config["model"]["name"]),
        "method": str(config["method"]["id"]),
        "strategy": merge["strategy"] if merge else "",
        "options": changed,
        # Runs of one row share the rule, not the number, where λ was chosen on validation data.
        "scale": "" if not merge else "selected" if "selected_on" in merge else f"{merge['scale']:.12g}",
        "tag": str(config["tag"]) if config.get("tag") is not None else "",
        "seed": int(config["seed"]),
        "path": str(path),
        "seconds": content["timing"]["total"],
        "data": content["provenance"].get("data_sha256", ""),
    }
    measures = {key: content["summary"].get(key) for key in MEASURES}
    numbers = {k: float("nan") if v is None else float(v) for k, v in measures.items()}
    return {**line, **numbers, "final_accuracy": float(content["summary"]["final_accuracy"])}


def _require_matrices(content: Mapping[str, Any]) -> None:
    steps = len(content["overall"])
    for kind in ("task_agnostic", "task_aware"):
        rows = [content["zero_shot"][kind], *content["accuracy"][kind]]
        if len(rows) != steps + 1 or len({len(row) for row in rows}) != 1:
            raise ValueError(f"{kind} is no matrix of {steps} rows")
    if len(content["seen"]) != steps:
        raise ValueError(f"seen is not of {steps} steps")


def protocol(trained: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result of a training besides its seed: config, θ₀, and the version of the package."""
    config = {key: value for key, value in deciding(trained["config"]).items() if key != "seed"}
    base = trained["provenance"].get("base_sha256")
    return {**config, "base_sha256": base, "version": trained["environment"]["mergestream"]}


def _of_merge(content: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result of a merge besides its training, and is no part of its row."""
    if content["kind"] == "train":
        return {}
    found = {"merged by version": content["environment"]["mergestream"]}
    return found | ({"candidates": content["config"]["candidates"]} if "selected_on" in content["merge"] else {})
