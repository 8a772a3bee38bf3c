"""Aggregation over seeds."""

from __future__ import annotations

from mergestream.report import group, label, spread


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
    assert [s["final_accuracy"] for s in rows["sequential"]] == [0.5, 0.7]
    assert len(rows["MagMax, λ = 0.5"]) == 1
