"""Which results under a root are used, and why others are left out."""

from __future__ import annotations

import json
import os
import shutil

import pandas as pd
import pytest
from helpers import command
from made_up import write

from mergestream.reporting.collect import collect
from mergestream.runtime import files

pytestmark = pytest.mark.usefixtures("without_figures")


def altered(path, **changes):
    """Change values of a JSON file, or drop those that are None, and renew its checksum."""
    content = {**files.read_json(path), **changes}
    files.write_json(path, {key: value for key, value in content.items() if value is not None})


MATRIX = [[0.5, 0.5], [0.5, 0.5]]
DAMAGES = {
    "truncated": (lambda path: path.write_text(path.read_text()[:100]), "cannot be read"),
    "edited": (lambda path: path.write_text(path.read_text().replace("0.5", "0.9")), "was altered"),
    "foreign": (lambda path: path.write_text(json.dumps({"loss": 1.0})), "it was not written by mergestream"),
    "later version": (lambda path: altered(path, schema_version=2), "its schema_version is 2; this version reads 1"),
    "empty config": (lambda path: altered(path, config={}), "it is not a metrics.json of this version (KeyError"),
    "missing key": (lambda path: altered(path, seen=None), "it has no seen"),
    "empty summary": (lambda path: altered(path, summary={}), "KeyError: 'final_accuracy'"),
    "ragged matrix": (
        lambda path: altered(path, accuracy={"task_agnostic": [[0.5, 0.5], [0.5]], "task_aware": MATRIX}),
        "task_agnostic is not a matrix of 2 rows",
    ),
    "empty list": (lambda path: altered(path, seen=[]), "seen does not have 2 steps"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_results_are_left_out_with_their_merges(name, tmp_path):
    damage, reason = DAMAGES[name]
    write(tmp_path, "seq")
    path = write(tmp_path, "ind") / "metrics.json"
    merge = write(tmp_path, "ind", strategy="magmax") / "metrics.json"
    damage(path)
    found = collect(tmp_path)
    assert found.runs["method"].tolist() == ["seq"]
    one, other = found.left_out
    assert (one.path, other.path) == (path, merge)
    assert reason in one.reason
    assert other.reason == "its training is left out"
    assert not one.expected
    assert not other.expected


def test_unreadable_files_are_left_out(tmp_path, monkeypatch):
    locked, read = write(tmp_path) / "metrics.json", files.read_json

    def refuse(path, *keys, own=False):
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *keys, own=own)

    monkeypatch.setattr(files, "read_json", refuse)
    (problem,) = collect(tmp_path).left_out
    assert "Permission denied" in problem.reason


def test_unfinished_results_and_links_are_expected(tmp_path):
    finished = write(tmp_path)
    unfinished = tmp_path / "digits/class-2/tiny/seq/seed-9"
    (unfinished / "task-00").mkdir(parents=True)
    for name in ("config.yaml", "stream.json", "task-00/evaluation.json"):
        (unfinished / name).touch()
    merge = write(tmp_path, "ind", strategy="magmax") / "metrics.json"
    unevaluated = finished / "merges/ties-1"
    unevaluated.mkdir(parents=True)
    (unevaluated / "merged.safetensors").touch()
    (tmp_path / "linked").symlink_to(tmp_path / "digits")
    found = collect(tmp_path)
    assert len(found.runs) == 1
    assert all(item.expected for item in found.left_out)
    assert {item.path: item.reason for item in found.left_out} == {
        unfinished: "it has not finished (tasks done: 1); its command continues it",
        merge: "its training has not finished",
        unevaluated: "it has not finished (it is not evaluated); its command continues it",
        tmp_path / "linked": "it is a link; links are not followed",
    }
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("left out: ") == 4


def test_every_file_of_a_report_lists_what_is_left_out(made_up_root):
    broken = [write(made_up_root, name, 1) / "metrics.json" for name in ("one", "two")]
    for path in broken:
        path.write_text("{")
    outcome = command("report.py", f"root={made_up_root}")
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert f"the report omits {broken[0]}: " in outcome.err
    assert "(1 more)" in outcome.err
    assert outcome.out.count("left out: ") == 2
    for text in ((made_up_root / "_report/report.md").read_text(), (made_up_root / "_report/report.html").read_text()):
        assert all(f"{path}<" in text or f"{path}`" in text for path in broken)
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


@pytest.mark.parametrize(
    ("made", "options", "scale"),
    [
        ({"scale": 1.0}, "calibration = lines", "0.4"),
        ({"scale": 0.9}, "calibration = lines, lambda = 0.9", "0.4"),
        ({"scale": 0.9, "selected_on": "validation"}, "calibration = lines, calibration.beta = 0.4", "selected"),
        ({"scale": 1.0, "selected_on": "validation"}, "calibration = lines, calibration.beta = 0.4", "selected"),
    ],
)
def test_what_takes_the_place_of_lambda_is_shown_as_lambda(tmp_path, made, options, scale):
    write(tmp_path, seed=1)
    path = write(tmp_path, seed=1, strategy="magmax") / "metrics.json"
    content = files.read_json(path)
    made["calibration"] = {"name": "lines", "beta": 0.4}
    made["changed"] = {"calibration": "lines", "calibration.beta": 0.4}
    content["config"]["candidates"] = [1.0]
    files.write_json(path, {**content, "merge": {**content["merge"], **made}})
    assert command("report.py", f"root={tmp_path}").code == 0
    table = pd.read_csv(tmp_path / "_report/report.csv", dtype=str)
    (line,) = table.query("strategy == 'magmax'").to_dict("records")
    assert line["name"].startswith(f"MagMax, {options.removeprefix('calibration = ')}")
    assert (line["options"], line["scale"]) == (options, scale)


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
