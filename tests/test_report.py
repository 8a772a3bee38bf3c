"""Aggregation over seeds."""

from __future__ import annotations

from helpers import command

from mergestream import files
from mergestream.report import group, label, protocol_difference, read_results, spread


def result(method="seq", strategy=None, seed=1, accuracy=0.5, tag=None, changed=None):
    config = {"dataset": {"name": "digits"}, "stream": {"name": "class"}, "model": {"name": "tiny"}}
    config |= {"method": {"id": method}, "tasks": 5, "seed": seed, "tag": tag}
    merge = {"merge": {"strategy": strategy, "scale": 0.5, "options": {}, "changed": changed or {}}} if strategy else {}
    return {"config": config, "summary": {"final_accuracy": accuracy}, **merge}


def test_spread_by_hand():
    assert spread([0.5, 0.7, None]) == "0.600 ± 0.141"  # sample deviation: √((0.1² + 0.1²) / 1)
    assert spread([0.25]) == "0.250"
    assert spread([None]) == ""


def test_names():
    assert label(result("ind", "magmax")) == "MaxAbs, λ = 0.5"
    assert label(result("seq", "task_arithmetic")) == "seq + task arithmetic, λ = 0.5"
    assert label(result("seq", "ties", changed={"density": 0.1})) == "seq + ties, density = 0.1, λ = 0.5"
    assert label(result("seq", tag="mine")) == "sequential [mine]"


def test_seeds_share_a_row_and_merges_do_not():
    tables = group([result(seed=1), result(seed=2, accuracy=0.7), result("seq", "magmax")])
    (rows,) = tables.values()
    assert list(tables) == ["digits, class-incremental, 5 tasks, tiny"]
    assert [r["summary"]["final_accuracy"] for r in rows["sequential"]] == [0.5, 0.7]
    assert len(rows["MagMax, λ = 0.5"]) == 1


def test_only_runs_of_one_protocol_are_averaged(tmp_path):
    def write(seed, **changes):
        content = {**result(seed=seed), "kind": "train", "provenance": {"base_sha256": "a"}, "summary": SUMMARY}
        content["config"] |= {"root": f"somewhere/{seed}", **changes}
        files.write_json(tmp_path / f"seed-{seed}/metrics.json", content)

    write(1, epochs=3)
    write(2, epochs=3)
    assert protocol_difference(list(read_results(tmp_path))) is None
    assert "0.500 ± 0.000" in command("report.py", f"root={tmp_path}").out
    write(3, epochs=4)
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 1
    assert "±" not in outcome.out
    assert "seed 1 has epochs=3, seed 3 has epochs=4" in outcome.err


SUMMARY = {"final_accuracy": 0.5, "average_incremental_accuracy": 0.5, "forgetting": 0.0}
