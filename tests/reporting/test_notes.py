"""Notes of a benchmark: circumstances that differ, and runs without every step."""

from __future__ import annotations

import pandas as pd
from helpers import command
from made_up import line, write

from mergestream.reporting.notes import notes
from mergestream.runtime import files


def metrics(threads: int, begun: int | None = None, overall: tuple[float | None, ...] = (0.5, 0.6)):
    found = {"environment": {"threads": threads, "gpus": [], "packages": {"torch": "2"}}, "overall": list(overall)}
    return {**found, "provenance": {} if begun is None else {"begun": {"environment": {"threads": begun, "gpus": []}}}}


def test_threads_that_differ_are_named():
    runs = pd.DataFrame([line(seed=seed) for seed in (1, 2, 3)])
    alike = {index: metrics(1) for index in range(3)}
    assert notes(runs, alike) == []
    (note,) = notes(runs, {**alike, 2: metrics(2)})
    assert note == "The trainings differ in threads, which can change the last bits: 1 (2 runs), 2 (1 run)."
    found = notes(runs, {**alike, 2: metrics(1, begun=4)})
    assert "1 (2 runs), 4 then 1 (1 run)" in found[0]


def test_merges_have_no_circumstances_that_matter():
    runs = pd.DataFrame([line(seed=1), line(seed=1, strategy="magmax", scale="0.5")])
    assert notes(runs, {0: metrics(1), 1: metrics(2)}) == []


def test_rows_without_every_step_are_named():
    runs = pd.DataFrame([line(seed=1), line(seed=2, method="ind")])
    (note,) = notes(runs, {0: metrics(1), 1: metrics(1, overall=(None, 0.6))})
    assert note.endswith("without forgetting, averages over the stream and curves: independent, last task.")


def test_a_report_shows_them(tmp_path):
    for seed in (1, 2):
        folder = write(tmp_path, seed=seed)
        content = files.read_json(folder / "metrics.json")
        content["environment"]["threads"] = seed
        files.write_json(folder / "metrics.json", content)
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 0, outcome.err
    text = "differ in threads, which can change the last bits: 1 (1 run), 2 (1 run)."
    for shown in (outcome.out, *((tmp_path / f"_report/report.{kind}").read_text() for kind in ("md", "html"))):
        assert text in shown
