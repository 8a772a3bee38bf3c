"""Which results under a root are used, and why others are left out."""

from __future__ import annotations

import json
import os
import shutil

import pandas as pd
from helpers import command
from made_up import write

from mergestream.reporting.collect import collect
from mergestream.runtime import files


def test_unusable_results_are_reported_and_left_out(made_up_root, monkeypatch):
    folders = {
        name: write(made_up_root, name, 1)
        for name in ("truncated", "altered", "later", "lacking", "without", "empty", "ragged", "seenless")
    }
    content = (folders["truncated"] / "metrics.json").read_text()
    (folders["truncated"] / "metrics.json").write_text(content[:100])
    (folders["altered"] / "metrics.json").write_text(content.replace("0.5", "0.9"))
    for name, change in (("later", {"schema_version": 2}), ("lacking", {"config": {}})):
        whole = files.read_json(folders[name] / "metrics.json")
        files.write_json(folders[name] / "metrics.json", {**whole, **change})
    ragged = {"task_agnostic": [[0.5, 0.5], [0.5]], "task_aware": [[0.5, 0.5]] * 2}
    for name, change in (("empty", {"summary": {}}), ("ragged", {"accuracy": ragged}), ("seenless", {"seen": []})):
        whole = files.read_json(folders[name] / "metrics.json")
        files.write_json(folders[name] / "metrics.json", {**whole, **change})
    whole = files.read_json(folders["without"] / "metrics.json")
    files.write_json(folders["without"] / "metrics.json", {k: v for k, v in whole.items() if k != "seen"})
    of_empty = write(made_up_root, "empty", 1, strategy="magmax")
    orphan = write(made_up_root, "orphan", 1, strategy="magmax")
    foreign = made_up_root / "foreign/metrics.json"
    foreign.parent.mkdir()
    foreign.write_text(json.dumps({"loss": 1.0}))
    copy = made_up_root / "backup"
    shutil.copytree(made_up_root / "digits/class-2/tiny/seq/seed-1", copy, ignore=shutil.ignore_patterns("merges"))
    unfinished = made_up_root / "digits/class-2/tiny/seq/seed-9"
    (unfinished / "task-00").mkdir(parents=True)
    for name in ("config.yaml", "stream.json", "task-00/evaluation.json"):
        (unfinished / name).write_text("")
    (made_up_root / "linked").symlink_to(made_up_root / "digits")
    half = made_up_root / "digits/class-2/tiny/ind/seed-1/merges/ties-1"
    half.mkdir()
    (half / "merged.safetensors").touch()
    locked, read = write(made_up_root, "ind", 8) / "metrics.json", files.read_json

    def refuse(path, *keys, own=False):
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *keys, own=own)

    monkeypatch.setattr(files, "read_json", refuse)
    reasons = {item.path: item.reason for item in collect(made_up_root).left_out}
    assert len(reasons) == 16
    for path, reason in (
        (folders["truncated"] / "metrics.json", "cannot be read"),
        (folders["altered"] / "metrics.json", "was altered"),
        (folders["later"] / "metrics.json", "its schema_version is 2"),
        (folders["lacking"] / "metrics.json", "it is not a metrics.json of this version"),
        (folders["without"] / "metrics.json", "it has no seen"),
        (folders["empty"] / "metrics.json", "KeyError: 'final_accuracy'"),
        (folders["ragged"] / "metrics.json", "task_agnostic is not a matrix of 2 rows"),
        (folders["seenless"] / "metrics.json", "seen does not have 2 steps"),
        (copy / "metrics.json", "a seed has one result"),
        (of_empty / "metrics.json", "its training is left out"),
        (orphan / "metrics.json", "its training has not finished"),
        (made_up_root / "linked", "it is a link"),
        (half, "it has not finished"),
        (locked, "Permission denied"),
        (foreign, "it is not of mergestream"),
        (unfinished, "it has not finished (tasks done: 1)"),
    ):
        assert reason in reasons[path]
    outcome = command("report.py", f"root={made_up_root}")
    assert outcome.code == 1  # some of it is damage
    assert len(outcome.err.strip().splitlines()) == 1
    assert "the report is written, without" in outcome.err
    for text in ((made_up_root / "_report/report.md").read_text(), (made_up_root / "_report/report.html").read_text()):
        assert all(f"{path}<" in text or f"{path}`" in text for path in reasons)
    assert outcome.out.count("left out: ") == len(reasons)
    assert len(pd.read_csv(made_up_root / "_report/runs.csv")) == 30


def test_a_root_inside_the_root_is_left_out(made_up_root):
    inner = made_up_root / "demo"
    write(inner, "ewc", 1)
    (inner / "_base").mkdir()
    outcome = command("report.py", f"root={made_up_root}")
    assert outcome.code == 0, outcome.err
    assert f"python report.py root={inner}" in outcome.out
    assert len(pd.read_csv(made_up_root / "_report/runs.csv")) == 30
    assert command("report.py", f"root={inner}").code == 0
    assert len(pd.read_csv(inner / "_report/runs.csv")) == 1


def test_a_copy_does_not_replace_the_run(made_up_root):
    shutil.copytree(made_up_root / "digits", made_up_root / "backup")
    found = collect(made_up_root)
    assert len(found.runs) == len(found.left_out) == 30
    assert all(path.startswith(f"{made_up_root}/digits/") for path in found.runs["path"])
    assert all(item.path.is_relative_to(made_up_root / "backup") for item in found.left_out)
    assert [content["config"]["seed"] for content in found.metrics] == list(found.runs["seed"])


def test_folders_with_reserved_names_are_searched(made_up_root, monkeypatch):
    write(made_up_root, "logs", 1)
    write(made_up_root, "task-free", 1)
    assert {"logs", "task-free"} <= set(collect(made_up_root).runs["method"])
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("/task-free"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (problem,) = collect(made_up_root).left_out
    assert problem.path == made_up_root / "digits/class-2/tiny/task-free"
    assert problem.reason == "it cannot be read (Permission denied)"


def test_unfinished_runs_are_no_error(made_up_root):
    (made_up_root / "digits/class-2/tiny/seq/seed-9").mkdir()
    for name in ("config.yaml", "stream.json"):
        (made_up_root / "digits/class-2/tiny/seq/seed-9" / name).write_text("")
    outcome = command("report.py", f"root={made_up_root}")
    assert outcome.code == 0
    assert "seed-9: it has not finished (tasks done: 0)" in outcome.out


def test_only_runs_of_one_protocol_are_averaged(tmp_path):
    write(tmp_path, seed=1, epochs=3)
    write(tmp_path, seed=2, epochs=3, accuracy=0.7)
    assert "60.00 ± 14.14" in command("report.py", f"root={tmp_path}").out
    write(tmp_path, seed=3, epochs=4)
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 1
    assert "60.00 ± 14.14" in outcome.out  # of the two that most are
    assert "seed 3 has epochs=4, seed 1 has epochs=3. Train it as those, or with tag=NAME" in outcome.err
    write(tmp_path, seed=4, epochs=4)
    write(tmp_path, "ind", 1)
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 1
    assert "sequential" not in outcome.out.split("left out")[0]  # neither two are most
    assert outcome.out.count("Train it as those") == 4
    shutil.rmtree(tmp_path / "digits/class-2/tiny/ind")
    outcome = command("report.py", f"root={tmp_path}")
    assert "has none that it can use" in outcome.err
    assert "seed 1 has epochs=3, seed 3 has epochs=4" in outcome.err


def test_equal_numbers_are_the_same_protocol(tmp_path):
    write(tmp_path, seed=1, gradient_clip=1.0, watched=None)
    write(tmp_path, seed=2, gradient_clip=1, accuracy=0.7)
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 0, outcome.err
    assert "60.00 ± 14.14" in outcome.out


def test_only_merges_with_the_same_candidates_are_averaged(tmp_path):
    for seed, candidates in ((1, [0.5]), (2, [0.5, 1.0])):
        write(tmp_path, seed=seed)
        path = write(tmp_path, seed=seed, strategy="magmax") / "metrics.json"
        content = files.read_json(path)
        content["config"]["candidates"] = candidates
        files.write_json(path, {**content, "merge": {**content["merge"], "selected_on": "validation"}})
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 1
    assert "seed 1 has candidates=[0.5], seed 2 has candidates=[0.5, 1.0]" in outcome.err
