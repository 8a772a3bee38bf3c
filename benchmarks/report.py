"""How long a report of many runs takes: python benchmarks/report.py [--runs 10000] [--repeats 3]

Writes that many metrics.json of five tasks (ten benchmarks, five seeds, methods and merges), as the commands write
them, and times the whole command, imports included; beside it, reading the same files and checking their checksums.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from mergestream.runtime import files

REPOSITORY = Path(__file__).parent.parent
TASKS, SEEDS, BENCHMARKS = 5, 5, 10


def write(root: Path, runs: int) -> None:
    """A training and its merges for each seed, until there are `runs` of them."""
    with initialize_config_dir(str(REPOSITORY / "configs"), version_base="1.3"):
        config = OmegaConf.to_container(compose("train"), resolve=True)
    draw = random.Random(0)
    merges = runs // (BENCHMARKS * SEEDS) - 1
    written = 0
    for number, seed in itertools.product(range(BENCHMARKS), range(SEEDS)):
        folder = root / f"data{number}/class-{TASKS}/tiny/seq/seed-{seed}"
        mine = {**config, "dataset": {"name": f"data{number}"}, "seed": seed}
        for merge in range(merges + 1):
            matrix = [[draw.random() for _ in range(TASKS)] for _ in range(TASKS)]
            means = [sum(row) / TASKS for row in matrix]
            content = {
                "schema_version": 1,
                "kind": "merge" if merge else "train",
                "config": mine,
                "zero_shot": {"task_agnostic": matrix[0], "task_aware": matrix[0], "overall": means[0]},
                "accuracy": {"task_agnostic": matrix, "task_aware": matrix},
                "overall": means,
                "seen": means,
                "summary": {"final_accuracy": means[-1], "average_accuracy": means[-1], "forgetting": draw.random()},
                "timing": {"total": 1.0},
                "environment": {"mergestream": "0", "packages": {f"package{i}": "1.0" for i in range(8)}},
                "git": {"commit": "0" * 40, "dirty": False},
                "provenance": {"command": "train.py", "base_sha256": "0" * 64},
            }
            path = folder
            if merge:
                strategy, scale = f"strategy{merge % 20}", merge // 20 / 10
                content["merge"] = {"strategy": strategy, "scale": scale, "options": {}, "changed": {}}
                path = folder / f"merges/{strategy}-{scale}"
            path.mkdir(parents=True)
            files.write_json(path / "metrics.json", content)
            written += 1
    print(f"{written} results in {BENCHMARKS} benchmarks, {SEEDS} seeds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="report-") as folder:
        root = Path(folder)
        write(root, arguments.runs)
        whole, reading = [], []
        for _ in range(arguments.repeats):
            began = time.monotonic()
            command = [sys.executable, "report.py", f"root={root}"]
            subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, check=True)
            whole.append(time.monotonic() - began)
            began = time.monotonic()
            for path in root.rglob("metrics.json"):
                files.read_json(path, own=True)
            reading.append(time.monotonic() - began)
        page = (root / "_report/report.html").stat().st_size
        print(f"report.py: {statistics.median(whole):.1f} s ({', '.join(f'{t:.1f}' for t in whole)})")
        ratio = statistics.median(whole) / statistics.median(reading)
        print(f"reading:   {statistics.median(reading):.1f} s; ratio {ratio:.1f}")
        print(f"report.html: {page / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
