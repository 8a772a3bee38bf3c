"""Made-up results: a line of a report's table, and a run's metrics.json."""

from __future__ import annotations

from mergestream.reporting.rows import MEASURES, label
from mergestream.runtime import files

LINE = {"dataset": "digits", "stream": "class", "tasks": 2, "model": "tiny", "method": "seq", "strategy": ""}
LINE |= {"options": "", "scale": "", "tag": ""}


def line(**values):
    result = {**LINE, "seed": 1, "seconds": 1.0, "protocol": "", "data": "", "source": "", "path": ""}
    result |= {**dict.fromkeys(MEASURES, float("nan")), "trained_tasks": values.get("tasks", 2), **values}
    return {**result, "name": label(result)}


def write(root, method="seq", seed=1, accuracy=0.5, strategy=None, scale=0.5, tasks=2, **changes):
    """A metrics.json as a training or a merge writes it."""
    config = {"dataset": {"name": "digits"}, "stream": {"name": "class"}, "model": {"name": "tiny"}, "tasks": tasks}
    config |= {"method": {"id": method}, "seed": seed, "tag": None, "root": f"somewhere/{seed}", **changes}
    row = [accuracy] * tasks
    content = {"schema_version": 1, "kind": "merge" if strategy else "train", "config": config}
    content |= {"zero_shot": {"task_agnostic": row, "task_aware": row, "overall": accuracy}}
    rows = [[accuracy + 0.01 * i] * tasks for i in range(tasks)]
    content |= {"accuracy": {"task_agnostic": rows, "task_aware": rows}}
    content |= {"overall": [r[0] for r in rows], "seen": [r[0] for r in rows]}
    content |= {"summary": {"final_accuracy": accuracy, "forgetting": 0.1}, "timing": {"total": 2.0}}
    content |= {"provenance": {"base_sha256": "a"}, "environment": {"mergestream": "0"}}
    config["candidates"] = [0.5]
    folder = root / f"digits/class-{tasks}/tiny/{method}/seed-{seed}"
    if strategy:
        content["merge"] = {"strategy": strategy, "scale": scale, "options": {}, "changed": {}}
        folder = folder / f"merges/{strategy}-{scale}"
    files.write_json(folder / "metrics.json", content)
    return folder
