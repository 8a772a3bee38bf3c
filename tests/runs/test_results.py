"""metrics.json: the accuracy of single classes, and which commit it records."""

from __future__ import annotations

import json
import math
import subprocess

import pytest

from mergestream.runs import results
from mergestream.runs.results import assemble, counts_of, zero_shot_counts


def git(folder, *words):
    name = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    return subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_recorded_only_where_git_tracks_the_package(tmp_path, monkeypatch):
    package = tmp_path / ".venv/results.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(results, "__file__", str(package))
    assert results.git_state() is None  # no repository
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "--message", "theirs")
    assert results.git_state() is None  # somebody else's repository around a virtual environment
    git(tmp_path, "add", "--force", ".venv/results.py")
    git(tmp_path, "commit", "--message", "ours")
    assert results.git_state() == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "new").write_text("")
    assert results.git_state()["dirty"]


PRECISION = {"precision": "32-true", "eval_precision": "32-true", "stream": {"name": "class"}}
HEADS = [[0, 2], [1], [3]]
OLD = ("class_total", "class_correct")


def counts(*correct):
    """Of four classes with 4, 3, 2 and 1 test images, whose tasks are `HEADS`."""
    total, by_task = [4, 3, 2, 1], [correct[0] + correct[2], correct[1], correct[3]]
    named = {"total": [6, 3, 1], "agnostic": by_task, "aware": by_task, "seen_correct": [0] * 3}
    return {**named, "class_total": total, "class_correct": list(correct)}


def test_what_is_said_of_single_classes():
    rows = [counts(4, 0, 1, 0), counts(3, 3, 1, 0), counts(2, 1, 2, 1)]
    found = assemble("train", PRECISION, counts(1, 1, 1, 1), rows, [1, 2, 3], {}, heads=HEADS)
    single = found["per_class"]
    assert (single["total"], single["correct"]) == ([4, 3, 2, 1], [2, 1, 2, 1])
    assert single["macro"] == pytest.approx([(1 + 0.5) / 4, (0.75 + 1 + 0.5) / 4, (0.5 + 1 / 3 + 1 + 1) / 4])
    assert single["seen"] == pytest.approx([0.75, 0.75, single["macro"][2]])
    assert single["unseen"] == [0, 0, None]
    assert single["harmonic"] == [0, 0, None]
    assert found["zero_shot"]["macro"] == pytest.approx((1 / 4 + 1 / 3 + 1 / 2 + 1) / 4)
    summary = found["summary"]
    assert summary["macro_accuracy"] == single["macro"][2]
    assert (summary["seen_classes"], summary["unseen_classes"], summary["harmonic_mean"]) == (0.75, 0, 0)
    assert zero_shot_counts(found) == counts(1, 1, 1, 1)
    alone = assemble("merge", PRECISION, counts(1, 1, 1, 1), rows[-1:], [3], {}, heads=HEADS)
    assert alone["per_class"]["macro"] == single["macro"][2:]
    assert math.isnan(alone["summary"]["harmonic_mean"])  # it needs the steps before


def test_what_older_records_lack_is_null():
    """Finished tasks of an older version, whose evaluation.json holds no classes, among new ones."""
    old = {key: value for key, value in counts(4, 0, 1, 0).items() if key not in OLD}
    rows = [counts_of({**old, "files": {}}), counts(3, 3, 1, 0), counts(2, 1, 2, 1)]
    found = assemble("train", PRECISION, counts(1, 1, 1, 1), rows, [1, 2, 3], {}, heads=HEADS)
    assert [value is None for value in found["per_class"]["macro"]] == [True, False, False]
    assert math.isnan(found["summary"]["seen_classes"])
    assert found["summary"]["macro_accuracy"] == found["per_class"]["macro"][2]
    assert found["overall"] == pytest.approx([0.5, 0.7, 0.6])

    before = {key: value for key, value in json.loads(json.dumps(found)).items() if key != "per_class"}
    del before["zero_shot"]["class_correct"]
    merged = assemble("merge", PRECISION, zero_shot_counts(before), rows[:1], [3], {}, heads=HEADS)
    assert set(merged["per_class"]) == set(found["per_class"])
    assert all(value in (None, [None]) for value in merged["per_class"].values())
    assert merged["zero_shot"]["macro"] is None
    assert math.isnan(merged["summary"]["macro_accuracy"])
