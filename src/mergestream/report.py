"""Every result under a root as tables: one table per benchmark, one row per method and merge, mean ± deviation."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mergestream import display, files
from mergestream.errors import UserError
from mergestream.identity import deciding

# What the paper calls a method with a merge; other pairs are named "method + strategy".
PAPER_NAMES = {
    ("zeroshot", None): "zero-shot",
    ("joint", None): "joint",
    ("seq", None): "sequential",
    ("ind", None): "independent (last task)",
    ("seq", "magmax"): "MagMax",
    ("ind", "magmax"): "MaxAbs",
}
MEASURES = ("final_accuracy", "average_incremental_accuracy", "forgetting")


def report(cfg: DictConfig) -> None:
    """Print the tables of all finished runs and merges under ``root``.

    Raises:
        UserError: if there are none, or runs of one row differ in more than the seed.
    """
    results = list(read_results(Path(cfg.root)))
    if not results:
        raise UserError(f"a report needs finished runs; there are none under root={cfg.root}. Type: python train.py")
    refused = []
    for benchmark, rows in group(results).items():
        columns = ["", "seeds", "final accuracy", "avg. incremental", "forgetting"]
        lines = []
        for name, runs in rows.items():
            if difference := protocol_difference(runs):
                refused.append(f"{benchmark}, {name}: {difference}")
                continue
            summaries = [run["summary"] for run in runs]
            cells = [spread([s[measure] for s in summaries]) for measure in MEASURES]
            mean = statistics.mean(s["final_accuracy"] for s in summaries)
            lines.append((mean, [name, len(summaries), *cells]))
        display.table(benchmark, columns, [line for _, line in sorted(lines, key=lambda line: -line[0])])
    if refused:
        raise UserError(
            "runs are averaged only where they differ in nothing but the seed; left out: " + "; ".join(refused)
        )


def read_results(root: Path) -> Iterable[dict[str, Any]]:
    """The content of every metrics.json under `root`, runs and merges, and the protocol of the training."""
    for path in sorted(root.rglob("metrics.json")):
        result = files.read_json(path, "config", "summary")
        run = path if result.get("kind") == "train" else path.parents[2] / "metrics.json"
        trained = files.read_json(run, "config") if run.is_file() else {"config": {}}
        yield {**result, "protocol": protocol(trained)}


def group(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Results by benchmark (dataset, stream, tasks, model) and by name of the method and merge."""
    tables: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        config = result["config"]
        stream = f"{config['stream']['name']}-incremental, {config['tasks']} tasks"
        benchmark = f"{config['dataset']['name']}, {stream}, {config['model']['name']}"
        tables[benchmark][label(result)].append(result)
    return tables


def protocol_difference(runs: Sequence[dict[str, Any]]) -> str | None:
    """In what results of one row differ that must differ in nothing but the seed; None if in nothing."""
    first = runs[0]
    for run in runs[1:]:
        one, two = first["protocol"], run["protocol"]
        for key in sorted(one.keys() | two.keys()):
            if one.get(key) != two.get(key):
                seeds = first["config"]["seed"], run["config"]["seed"]
                return f"seed {seeds[0]} has {key}={one.get(key)}, seed {seeds[1]} has {key}={two.get(key)}"
    return None


def protocol(trained: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the result of a training besides its seed: config, θ₀, and the version of the package."""
    config = {key: value for key, value in deciding(trained["config"]).items() if key not in ("seed", "tag")}
    base = trained.get("provenance", {}).get("base_sha256")
    return {**config, "base_sha256": base, "version": trained.get("environment", {}).get("mergestream")}


def label(result: dict[str, Any]) -> str:
    """Name of a row: the method as the paper calls it, and λ for a merge."""
    method, merge = result["config"]["method"]["id"], result.get("merge")
    strategy = merge["strategy"] if merge else None
    plain = method if strategy is None else f"{method} + {strategy.replace('_', ' ')}"
    name = PAPER_NAMES.get((method, strategy), plain)
    if config_tag := result["config"].get("tag"):
        name += f" [{config_tag}]"
    if merge is None:
        return name
    changed = "".join(f", {key} = {value}" for key, value in sorted(merge["changed"].items()))
    # Runs of one row share the rule, not the number, where λ was chosen on validation data.
    scale = "chosen on validation" if "selected_on" in merge else f"{merge['scale']:.12g}"
    return f"{name}{changed}, λ = {scale}"


def spread(values: list[float | None]) -> str:
    """Mean ± sample standard deviation of what is defined; the mean alone of one value; nothing of none."""
    defined = [value for value in values if value is not None]
    if not defined:
        return ""
    mean = f"{statistics.mean(defined):.3f}"
    return f"{mean} ± {statistics.stdev(defined):.3f}" if len(defined) > 1 else mean
