"""Every result under a root as tables: one table per benchmark, one row per method and merge, mean ± deviation."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mergestream import display, files
from mergestream.errors import UserError

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
        UserError: if there are none.
    """
    results = list(read_results(Path(cfg.root)))
    if not results:
        raise UserError(f"a report needs finished runs; there are none under root={cfg.root}. Type: python train.py")
    for benchmark, rows in group(results).items():
        columns = ["", "seeds", "final accuracy", "avg. incremental", "forgetting"]
        ordered = sorted(rows.items(), key=lambda row: -statistics.mean(r["final_accuracy"] for r in row[1]))
        lines = []
        for name, summaries in ordered:
            cells = [spread([s[measure] for s in summaries]) for measure in MEASURES]
            lines.append([name, len(summaries), *cells])
        display.table(benchmark, columns, lines)


def read_results(root: Path) -> Iterable[dict[str, Any]]:
    """The content of every metrics.json under `root`, runs and merges."""
    for path in sorted(root.rglob("metrics.json")):
        yield files.read_json(path, "config", "summary")


def group(results: Iterable[dict[str, Any]]) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Summaries by benchmark (dataset, stream, tasks, model) and by name of the method and merge."""
    tables: dict[str, dict[str, list[dict[str, float]]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        config = result["config"]
        stream = f"{config['stream']['name']}-incremental, {config['tasks']} tasks"
        benchmark = f"{config['dataset']['name']}, {stream}, {config['model']['name']}"
        tables[benchmark][label(result)].append(result["summary"])
    return tables


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
