"""``evaluate``: which tasks are followed by an evaluation, and what is absent without one."""

from __future__ import annotations

import json

import pytest
from helpers import command, config, noise

from mergestream.compose.run import run_of
from mergestream.runs.results import assemble
from mergestream.training.session import _is_due


def counts(*correct: int) -> dict[str, list[int]]:
    return {"total": [10] * len(correct), **{key: list(correct) for key in ("agnostic", "aware", "seen_correct")}}


def test_when_it_is_due():
    due = {value: [task for task in range(1, 8) if _is_due(value, task)] for value in ("each", "last", 1, 3)}
    assert due == {"each": [*range(1, 8)], "last": [], 1: [*range(1, 8)], 3: [3, 6]}


def test_what_needs_every_row_is_absent():
    cfg = {"precision": "32-true", "eval_precision": "32-true", "stream": {"name": "class"}}
    rows = [None, counts(9, 8, 1), counts(5, 6, 7)]
    found = assemble("train", cfg, counts(1, 2, 3), rows, [1, 2, 3], {})
    assert found["accuracy"]["task_agnostic"] == [None, [0.9, 0.8, 0.1], [0.5, 0.6, 0.7]]
    assert found["overall"] == [None, 0.6, 0.6]
    assert found["seen"][0] is None
    summary = found["summary"]
    assert (summary["final_accuracy"], summary["average_accuracy"]) == (0.6, pytest.approx(0.6))
    absent = ("average_incremental_accuracy", "forgetting", "bwt", "fwt", "transfer")
    assert all(summary[name] != summary[name] for name in absent)  # NaN, which JSON holds as null


def test_the_last_row_is_the_same_and_the_others_are_null(trained, tmp_path):
    """On the digits, whose run with evaluate=each is `trained`; evaluation is no part of the training."""
    arguments = [f"root={tmp_path}", "tasks=3", "epochs=1"]
    outcome = command("train.py", *arguments, "evaluate=2", "merge_every_task=true")
    assert outcome.code == 0, outcome.err
    assert [line.split("  ")[1].split(" ")[0] for line in outcome.out.splitlines() if line.startswith("task ")] == [
        "not", "overall", "overall",
    ]  # fmt: skip
    whole, run = (run_of(config("train", f"root={root}", "tasks=3")) for root in (trained, tmp_path))
    assert [path.read_bytes() for path in run.encoders()] == [path.read_bytes() for path in whole.encoders()]
    every, some = (json.loads(r.metrics.read_text()) for r in (whole, run))
    assert some["accuracy"]["task_agnostic"] == [None, *every["accuracy"]["task_agnostic"][1:]]
    assert some["summary"]["final_accuracy"] == every["summary"]["final_accuracy"]
    assert some["summary"]["forgetting"] is None
    merged = json.loads((run.path / "merges/magmax-0.5/metrics.json").read_text())
    assert merged["overall"][0] is None
    assert merged["overall"][2] > 0
    again = command("train.py", *arguments)
    assert "was not evaluated on all tasks after every task" in again.out
    report = command("report.py", f"root={tmp_path}")
    assert report.code == 0, report.err
    assert "without forgetting, averages over the stream and curves: MagMax, sequential, last task." in report.out
    assert not list(tmp_path.rglob("*curves.png"))


def test_a_run_goes_on_with_another_value(tmp_path):
    arguments = (f"root={tmp_path}", *noise(), "epochs=1", "method=joint")
    assert command("train.py", *arguments, "evaluate=last").code == 0
    run = run_of(config("train", *arguments))
    before = json.loads(run.metrics.read_text())
    run.metrics.unlink()
    assert command("train.py", *arguments, "evaluate=each").code == 0  # joint has one task
    assert json.loads(run.metrics.read_text())["summary"] == before["summary"]
