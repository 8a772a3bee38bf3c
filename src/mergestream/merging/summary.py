"""What merge.py prints of a merge of a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mergestream.display import tables
from mergestream.runs.directory import readable
from mergestream.runs.results import Metrics
from mergestream.runtime.rules import is_number


def show(trained: Metrics, folder: Path, metrics: Mapping[str, Any]) -> None:
    """Print θ₀, the last encoder and the merge side by side."""
    method, merge, zero_shot = metrics["config"]["method"]["id"], metrics["merge"], metrics["zero_shot"]
    label = f"{method} + {merge['strategy']}, λ = {merge['scale']:g}"
    if "selected_on" in merge:
        label += " (chosen on validation data)"
    if found := merge.get("calibration"):
        options = {key: value for key, value in found.items() if key not in ("name", "selected_on")}
        said = ", ".join(
            f"{key} = {value:g}" if is_number(value) else f"{key} = {value}" for key, value in options.items()
        )
        label += f", {found['name']}" + (f" with {said}" if said else "")
        label += " (chosen on validation data)" if "selected_on" in found else ""
    average = float(np.mean([float("nan") if a is None else a for a in zero_shot["task_agnostic"]]))
    rows: list[list[Any]] = [["zero-shot", zero_shot["overall"], average, None, None]]
    for name, result in ((method, trained), (label, metrics)):
        summary, timing = result["summary"], result["timing"]
        seconds = timing.get("merging", timing.get("training"))
        rows.append([name, summary["final_accuracy"], summary["average_accuracy"], summary["forgetting"], seconds])
    tables.table("merged", ["", "overall", "average", "forgetting", "seconds"], rows)
    if calibration := metrics.get("calibration"):
        said = f"expected calibration error {calibration['ece']:.3f}"
        if calibration["temperature"] is not None:
            error, temperature = calibration["ece_with_temperature"], calibration["temperature"]
            said += f"; {error:.3f} with the temperature {temperature:.3f}, chosen on validation data"
        print(said)
    print(f"results in {readable(folder)}")
