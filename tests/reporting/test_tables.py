"""The overview in the paper's layout, and LaTeX."""

from __future__ import annotations

import re
import shutil
import subprocess

import pandas as pd
from made_up import line, write

from mergestream.reporting.collect import collect
from mergestream.reporting.retention import with_mean_retention
from mergestream.reporting.rows import MEASURES, measures_of
from mergestream.reporting.statistics import aggregate, compare
from mergestream.reporting.tables import benchmark_table, escape_latex, latex, overview, percent, ranks
from mergestream.runtime import files


def test_bounds_have_no_rank():
    values = {"joint": 0.9, "seq": 0.7, "ind": 0.8, "lwf": 0.6, "ewc": 0.80001}
    table = aggregate(pd.DataFrame([line(method=m, final_accuracy=a) for m, a in values.items()]))
    rank = dict(zip(table["method"], ranks(table), strict=True))
    assert rank == {"joint": 0, "ind": 1, "ewc": 1, "seq": 2, "lwf": 3}


def test_overview_has_blanks_for_missing_results():
    lines = [line(final_accuracy=0.5), line(tasks=5, final_accuracy=0.6), line(method="ind", final_accuracy=0.7)]
    ((title, cells),) = overview(aggregate(pd.DataFrame(lines)), lambda mean, deviation, rank: percent(mean))
    assert title == "class-incremental, tiny"
    assert cells.loc["sequential, last task"].tolist() == ["50.00", "60.00", "55.00"]  # and their average
    assert cells.loc["independent, last task"].tolist() == ["70.00", "", ""]


def test_mtil_is_shown_where_it_is_defined(tmp_path):
    write(tmp_path / "class")
    assert measures_of(with_mean_retention(collect(tmp_path).runs)) == MEASURES
    metrics = write(tmp_path / "dataset", stream={"name": "dataset"}) / "metrics.json"
    content = files.read_json(metrics)
    files.write_json(metrics, {**content, "summary": {**content["summary"], "mtil_avg": 0.25, "xtail_avg": None}})
    runs = with_mean_retention(collect(tmp_path).runs).assign(name="seq")
    assert measures_of(runs) == {**MEASURES, "mtil_avg": "MTIL Avg"}
    table = compare(runs, aggregate(runs))
    by_stream = {stream: benchmark_table(rows, "MagMax") for stream, rows in table.groupby("stream")}
    assert by_stream["dataset"].loc["seq", "MTIL Avg"] == "25.00"
    assert "MTIL Avg" not in by_stream["class"]


def test_latex_of_the_overview(tmp_path):
    values = [("seq", "magmax", 0.75), ("ind", "", 0.5), ("joint", "", 0.9), ("my_method & co", "", 0.6)]
    lines = [
        line(method=m, strategy=s, scale="0.5" if s else "", final_accuracy=a + 0.02 * seed, seed=seed, tasks=tasks)
        for m, s, a in values
        for seed in (1, 2)
        for tasks in (5, 10)
    ]
    text = latex(aggregate(pd.DataFrame(lines)))
    assert r"MagMax & \textbf{78.00 $\pm$ 1.41} & \textbf{78.00 $\pm$ 1.41} & 78.00 \\" in text
    assert r"my\_method \& co & \underline{63.00 $\pm$ 1.41}" in text
    assert r"Joint & 93.00 $\pm$ 1.41 &" in text
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        assert rule in text
    assert text.count(r"\begin{longtable}") == 1
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    inside = [row for row in text.splitlines() if row.startswith(("MagMax", "my", "Joint", "independent"))]
    assert [len(re.findall(r"(?<!\\)&", row)) for row in inside] == [3] * 4
    if shutil.which("pdflatex"):
        document = (
            "\\documentclass{article}\\usepackage{booktabs,longtable}\\begin{document}\n" + text + "\\end{document}\n"
        )
        (tmp_path / "t.tex").write_text(document)
        arguments = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


def test_special_characters_of_latex_are_escaped():
    assert escape_latex(r"a_b%c&d#e$f{g}h~i^j\k") == (
        r"a\_b\%c\&d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
    )
