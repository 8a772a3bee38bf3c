"""Retention in a report: its columns, and what is left out of them."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from helpers import command
from made_up import line, write

from mergestream.reporting.collect import collect
from mergestream.reporting.notes import notes
from mergestream.reporting.retention import retained_on, with_mean_retention
from mergestream.reporting.statistics import aggregate, compare
from mergestream.reporting.tables import benchmark_table
from mergestream.runs.retention import Measurement, path_beside
from mergestream.runtime import files


def measured(encoder, value, name="dtd", data="d", **options):
    """Write an encoder, if it is not there, and its retention on a data set."""
    if not encoder.exists():
        files.write_tensors(encoder, {"weight": torch.zeros(1)}, {"of": str(encoder)})
    content = dict.fromkeys(Measurement.__annotations__, 0)
    content |= {"dataset": name, "retention": value, "data_sha256": data, "config": {"dataset": options}}
    path = path_beside(encoder, name)
    files.write_json(path, {**content, "encoder_sha256": files.verify(encoder)})
    return path


@pytest.mark.usefixtures("without_figures")
def test_retention_is_averaged_over_seeds(tmp_path):
    for seed in (1, 2):
        measured(write(tmp_path, seed=seed) / "task-01/encoder.safetensors", -0.1 * seed)  # T = 2, so of the last
        measured(write(tmp_path, seed=seed) / "task-00/encoder.safetensors", -0.9)
        measured(write(tmp_path, seed=seed, strategy="magmax") / "merged.safetensors", 0.02 * seed)
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 0, outcome.err
    assert "Retention: zero-shot accuracy on dtd minus that of θ₀, in points." in outcome.out
    assert "-15.00 ± 7.07" in outcome.out
    assert "| retention on dtd |" in (tmp_path / "_report/report.md").read_text()
    table = pd.read_csv(tmp_path / "_report/report.csv").set_index("name")
    assert table.loc["MagMax", ["retention", "retention[dtd]"]].tolist() == pytest.approx([0.03, 0.03])
    assert table.loc["sequential, last task", "retention[dtd]_std"] == pytest.approx(0.1 / 2**0.5)
    assert pd.read_csv(tmp_path / "_report/runs.csv")["retention[dtd]"].tolist() == [-0.1, 0.02, -0.2, 0.04]


def test_the_mean_is_over_the_data_sets_that_all_have():
    both = {"retention[a]": 0.1, "retention[b]": -0.3}
    lines = [line(seed=1, **both), line(seed=2, **both), line(method="ind", **{**both, "retention[c]": 0.5})]
    lines.append(line(method="lwf"))  # nothing was measured of it
    runs = with_mean_retention(pd.DataFrame(lines))
    assert runs["retention"].tolist()[:3] == pytest.approx([-0.1] * 3)
    assert runs["retention"].isna().tolist()[3:] == [True]
    assert retained_on(runs) == ["a", "b"]
    cells = benchmark_table(compare(runs, aggregate(runs)), "MagMax")
    assert cells["retention on 2 data sets"].tolist() == ["-10.00 ± 0.00", "-10.00", ""]
    metrics = {"environment": {}, "provenance": {}, "overall": [0.5]}
    (note,) = notes(runs, dict.fromkeys(range(4), metrics))
    assert note == (
        "Retention: mean zero-shot accuracy on a, b minus that of θ₀, in points. That on c, which some rows lack, is "
        "in report.csv."
    )
    apart = with_mean_retention(pd.DataFrame([line(**{"retention[a]": 0.1}), line(seed=2, **{"retention[b]": 0.1})]))
    assert apart["retention"].isna().all()
    assert "retention" not in " ".join(benchmark_table(compare(apart, aggregate(apart)), "MagMax").columns)
    assert "no data set was measured for all rows" in notes(apart, {0: metrics, 1: metrics})[0]


def test_what_was_measured_of_something_else_is_left_out(tmp_path):
    paths = []
    for seed in range(1, 6):
        folder = write(tmp_path, seed=seed, strategy="magmax")
        write(tmp_path, seed=seed)
        changed = {"data": "other"} if seed == 1 else {"partition": 2} if seed == 2 else {}
        paths.append(measured(folder / "merged.safetensors", 0.01 * seed, **changed))
    files.write_tensors(paths[2].parents[1] / "merged.safetensors", {"weight": torch.ones(1)})  # merged again
    content = json.loads(paths[3].read_text())
    paths[3].write_text(json.dumps(content | {"retention": 0.5}))
    for seed in range(6, 9):
        measured(write(tmp_path, seed=seed) / "task-01/encoder.safetensors", 0.01 * seed)
    found = collect(tmp_path)
    merges = found.runs[found.runs["strategy"] == "magmax"]
    assert merges["retention[dtd]"].dropna().tolist() == [0.05]
    reasons = {item.path: (item.reason, item.expected) for item in found.left_out}
    assert set(reasons) == set(paths[:4])
    for path in paths[:2]:
        assert reasons[path][0].startswith("it was measured on other data or with other options than most results on")
        assert not reasons[path][1]
    assert reasons[paths[2]][0].startswith("it is of an earlier encoder; type ")
    assert reasons[paths[2]][1]
    assert "was altered" in reasons[paths[3]][0]
    (paths[4].parents[1] / "merged.safetensors").unlink()
    assert collect(tmp_path).runs["retention[dtd]"].notna().sum() == 3
