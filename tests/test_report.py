"""What a report says of the runs under a root: means, tests, tables, pictures, and what it leaves out."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pandas as pd
import pytest
from helpers import command
from PIL import Image

from mergestream import display, files
from mergestream.reporting import figures
from mergestream.reporting.collect import MEASURES, ROW, collect, label, names
from mergestream.reporting.figures import forgetting
from mergestream.reporting.paper import paper_accuracy
from mergestream.reporting.statistics import aggregate, compare, untested, with_bounds
from mergestream.reporting.tables import escaped, latex, lent, overview, percent, ranks

LINE = {"dataset": "digits", "stream": "class", "tasks": 2, "model": "tiny", "method": "seq", "strategy": ""}
LINE |= {"options": "", "scale": "", "tag": ""}


def line(**values):
    result = {**LINE, "seed": 1, "seconds": 1.0, "protocol": "", "data": "", "path": ""}
    result |= {**dict.fromkeys(MEASURES, float("nan")), "trained_tasks": values.get("tasks", 2), **values}
    return {**result, "name": label(result)}


def test_aggregation_by_hand():
    runs = pd.DataFrame([line(seed=s, final_accuracy=a) for s, a in ((3, 0.5), (1, 0.7), (2, 0.9))])
    runs.loc[0, "forgetting"] = 0.25
    (row,) = aggregate(runs).to_dict("records")
    assert (row["n"], row["seeds"]) == (3, "1 2 3")
    assert row["final_accuracy"] == pytest.approx(0.7)
    assert row["final_accuracy_std"] == pytest.approx(0.2)  # √((0.04 + 0 + 0.04) / 2)
    assert row["final_accuracy_ci95"] == pytest.approx(4.302653 * 0.2 / math.sqrt(3))  # t of 2 degrees of freedom
    assert row["forgetting"] == 0.25  # of the one seed that has it
    assert math.isnan(row["forgetting_std"])
    assert math.isnan(row["forgetting_ci95"])
    assert math.isnan(row["bwt"])


def test_paired_tests_by_hand():
    accuracies = {"seq": (0.5, 0.6, 0.7), "ind": (0.6, 0.8, 0.7), "ewc": (0.6, 0.7, 0.83), "lwf": (0.6, 0.7, 0.8)}
    runs = pd.DataFrame(
        [line(method=m, seed=s, final_accuracy=a) for m, values in accuracies.items() for s, a in enumerate(values)]
    )
    runs = pd.concat([runs, pd.DataFrame([line(method="joint", seed=7, final_accuracy=1.0)])], ignore_index=True)
    table = compare(runs, aggregate(runs), "sequential, last task").set_index("method")
    # With two degrees of freedom the two-sided p of t is 1 − t / √(2 + t²).
    # ind: differences 0.1, 0.2, 0, mean 0.1, deviation 0.1, t = √3; ewc: 0.1, 0.1, 0.13, t = 0.11 / (0.03 / 3) = 11
    assert table.loc["ind", "minus_baseline"] == pytest.approx(0.1)
    assert table.loc["ind", "p"] == pytest.approx(1 - math.sqrt(3 / 5))
    assert table.loc["ewc", "p"] == pytest.approx(2 * (1 - 11 / math.sqrt(123)))  # Holm: the smaller of two, times two
    assert math.isnan(table.loc["lwf", "p"])  # always 0.1 better, so no deviation to test with
    assert table.loc["lwf", "minus_baseline"] == pytest.approx(0.1)
    assert table.loc["joint", "pairs"] == 0  # another seed
    assert math.isnan(table.loc["joint", "p"])
    assert math.isnan(table.loc["seq", "p"])


def test_only_seeds_with_the_same_data_are_pairs():
    def of(method, *data, gain=0.0):
        return [line(method=method, seed=s, data=d, final_accuracy=0.5 + gain * s) for s, d in enumerate(data)]

    runs = pd.DataFrame([*of("seq", "a", "b", "c"), *of("ind", "a", "other", "c", gain=0.1), *of("joint", "", "", "")])
    table = compare(runs, aggregate(runs), "sequential, last task").set_index("method")
    assert table.loc["ind", "pairs"] == 2
    assert table.loc["ind", "minus_baseline"] == pytest.approx(0.1)  # of 0 and 0.2
    assert table.loc["joint", "pairs"] == 3  # whose accuracy over all classes does not depend on their order


def test_the_baseline_is_magmax_with_its_published_scale():
    def rows(tasks, *scales):
        magmax = [line(tasks=tasks, strategy="magmax", scale=scale, final_accuracy=0.5) for scale in scales]
        return [*magmax, line(tasks=tasks, final_accuracy=0.7, seed=1), line(tasks=tasks, final_accuracy=0.1, seed=2)]

    runs = pd.DataFrame([*rows(2, "0.3"), *rows(5, "0.3", "0.5"), *rows(9, "0.3", "0.4")])
    runs["name"] = names(runs)
    table = compare(runs, aggregate(runs))
    found = table[table["strategy"] == ""].set_index("tasks")
    assert found["baseline"].tolist() == ["MagMax, λ = 0.3", "MagMax, λ = 0.5", ""]
    assert found["minus_baseline"].tolist()[:2] == pytest.approx([0.2, 0.2])  # of the seed that both have
    assert found["pairs"].tolist() == [1, 1, 0]
    assert untested(table) == ["digits, class-incremental, 9 tasks, tiny"]
    assert found["p"].isna().all()


def test_bounds_stand_beside_every_number_of_tasks():
    lines = [line(method="joint", tasks=5, final_accuracy=0.9, forgetting=0.1, seed=s) for s in (1, 2)]
    lines += [line(tasks=tasks, final_accuracy=0.5) for tasks in (5, 10)]
    lines += [line(method="joint", stream="domain", final_accuracy=0.8), line(stream="domain", tasks=3)]
    table = aggregate(with_bounds(pd.DataFrame(lines)))
    joint = table[table["method"] == "joint"].set_index(["stream", "tasks"])
    assert set(joint.index) == {("class", 5), ("class", 10), ("domain", 2)}
    assert joint.loc[("class", 10), ["final_accuracy", "n", "trained_tasks"]].tolist() == [0.9, 2, 5]
    assert not lent(joint.reset_index().iloc[0])
    assert math.isnan(joint.loc[("class", 10), "forgetting"])


def test_bounds_come_from_one_number_of_tasks():
    lines = [line(method="joint", tasks=5, final_accuracy=0.9, seed=seed) for seed in (1, 2)]
    lines += [line(method="joint", tasks=10, final_accuracy=0.6, seed=3), line(tasks=20)]
    table = aggregate(with_bounds(pd.DataFrame(lines))).set_index(["method", "tasks"])
    assert table.loc[("joint", 20), ["final_accuracy", "seeds"]].tolist() == [0.9, "1 2"]
    assert table.loc[("joint", 10), ["final_accuracy", "seeds"]].tolist() == [0.6, "3"]


def test_forgetting_by_hand():
    # After task 2: 0.9 − 0.6. After task 3: of the first 0.9 − 0.7, of the second 0.8 − 0.9.
    assert forgetting([[0.9, 0.1, 0.1], [0.6, 0.8, 0.2], [0.7, 0.9, 0.5]]) == pytest.approx([0.3, (0.2 - 0.1) / 2])


def test_pictures_keep_magmax_and_the_papers_rows():
    best = [f"seq + {i}" for i in range(40)]
    names = [*best[:30], "MaxAbs", *best[30:], "EWC", "MagMax, λ = 0.3"]
    assert figures._selected(names, 32) == [*best[:29], "MaxAbs", "EWC", "MagMax, λ = 0.3"]
    assert figures._selected(names, 1) == ["MagMax, λ = 0.3"]
    assert figures._selected(names, 99) == names


def test_the_comparison_by_hand():
    """Of rows with a mean of 0.5 − 0.01 i, a seed 0.01 above it and one below it, and of MagMax, which is the last."""
    values = [({"strategy": str(i)}, 0.5 - 0.01 * i) for i in range(40)]
    values += [({"strategy": "magmax", "scale": "0.5"}, 0.05), ({"method": "joint"}, 0.9)]
    lines = [line(**v, seed=s, final_accuracy=a + gain) for v, a in values for s, gain in ((1, -0.01), (2, 0.01))]
    ((name, caption, figure),) = figures.of_stream(aggregate(pd.DataFrame(lines)))
    assert (name, "32 of 41" in caption) == ("comparison", True)
    (axis,) = figure.axes
    labels = {label.get_text(): label.get_position()[1] for label in axis.get_yticklabels()}
    assert len(labels) == 32
    assert labels["MagMax"] == 31
    assert [label.get_text() for label in axis.get_yticklabels() if label.get_fontweight() == "bold"] == ["MagMax"]
    bound, points, *_ = axis.lines
    assert bound.get_xdata() == pytest.approx([90, 90])
    assert points.get_xdata() == pytest.approx([*(50 - i for i in range(31)), 5])
    (bars,) = axis.collections
    ends = [path.vertices[:, 0] for path in bars.get_paths()]
    half = 12.7062 * math.sqrt(2) / math.sqrt(2)  # t of one degree of freedom, s of 49 and 51, two seeds
    assert ends[0] == pytest.approx([50 - half, 50 + half], rel=1e-4)


def test_curves_and_matrices_by_hand():
    """Of two seeds: forgetting is what `forgetting` says of each, averaged, in per cent."""
    first, second = [[0.8, 0.1], [0.6, 0.7]], [[0.6, 0.1], [0.5, 0.9]]
    contents = [
        {"overall": [0, 0], "seen": [R[0][0], sum(R[1]) / 2], "accuracy": {"task_agnostic": R}} for R in (first, second)
    ]
    runs = pd.DataFrame([line(seed=seed, final_accuracy=0.5) for seed in (1, 2)])
    found = {name: figure for name, _, figure in figures.of_benchmark(runs, dict(enumerate(contents)))}
    assert set(found) == {"curves", "matrices"}
    left, right = found["curves"].axes
    assert left.lines[0].get_ydata() == pytest.approx([70, 67.5])
    assert right.lines[0].get_ydata() == pytest.approx([15])  # of 0.2 and 0.1
    (band,) = left.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.min() == pytest.approx(70 - 100 * math.sqrt(0.02))  # 80 and 60
    (image,) = found["matrices"].axes[0].images
    assert image.get_array().ravel().tolist() == pytest.approx([70, 10, 55, 80])
    assert image.get_clim() == (0, 100)


def test_scale_curves_by_hand():
    lines = [
        line(strategy="magmax", scale=s, seed=seed, final_accuracy=a + 0.1 * seed)
        for s, a in (("1", 0.2), ("0.5", 0.3), ("0.25", 0.1))
        for seed in (1, 2)
    ]
    contents = {key: {"overall": [0]} for key in range(len(lines))}
    ((name, _, figure),) = figures.of_benchmark(pd.DataFrame(lines), contents)
    (curve,) = figure.axes[0].lines
    assert (name, curve.get_label()) == ("lambda", "MagMax")
    assert curve.get_xdata() == pytest.approx([0.25, 0.5, 1])
    assert curve.get_ydata() == pytest.approx([25, 45, 35])


def test_names():
    assert label({**LINE, "method": "ind", "strategy": "magmax", "scale": "0.5"}) == "MaxAbs"
    assert label({**LINE, "strategy": "task_arithmetic", "scale": "0.3"}) == "seq + task arithmetic"
    ties = {**LINE, "method": "ind", "strategy": "ties"}
    assert label({**ties, "options": "scope = clip"}) == "TIES"  # as published
    assert label({**ties, "options": "density = 0.1"}) == "ind + ties, density = 0.1"
    assert label({**LINE, "strategy": "magmax", "options": "some = 1"}) == "MagMax, some = 1"
    assert label({**LINE, "tag": "mine"}) == "sequential, last task [mine]"


def test_names_have_a_scale_where_a_benchmark_has_several():
    def named(*lines):
        return names(pd.DataFrame([{**LINE, **line} for line in lines]))

    one, other = {"strategy": "magmax", "scale": "0.5"}, {"strategy": "magmax", "scale": "0.3"}
    assert named(one, {**other, "tasks": 5}, {"strategy": "ties", "scale": "0.3"}) == ["MagMax", "MagMax", "seq + ties"]
    assert named(one, other, {**one, "tasks": 5}, {}) == [
        *("MagMax, λ = 0.5", "MagMax, λ = 0.3", "MagMax, λ = 0.5"),
        "sequential, last task",
    ]
    assert named(one, {**one, "scale": "selected"}) == ["MagMax, λ = 0.5", "MagMax, λ on validation"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"dataset": "cifar100", "tasks": 10, "strategy": "magmax", "scale": "0.5"}, "main-1"),
        ({"dataset": "cars", "tasks": 20, "method": "joint"}, "main-1-inferred"),
        ({"dataset": "cub200", "tasks": 5, "method": "ewc", "strategy": "magmax", "scale": "0.5"}, "main-2"),
        ({"dataset": "imagenet_r", "tasks": 50, "method": "lwf", "model": "vit_l_14"}, "supp-1"),
    ],
)
def test_the_papers_number(values, expected):
    given = {**LINE, "model": "vit_b_16", **values}
    method = {"seq": "MagMax", "joint": "Joint", "ewc": "EWC + MagMax", "lwf": "LwF"}[given["method"]]
    dataset = {"cifar100": "CIFAR100", "cars": "Cars", "cub200": "CUB200", "imagenet_r": "ImageNet-R"}[given["dataset"]]
    numbers = pd.read_csv(files.Path("src/mergestream/reporting/paper_results.csv"), dtype=str)
    tasks = "all" if method == "Joint" else str(given["tasks"])
    found = numbers[
        (numbers[["table", "method", "dataset", "tasks"]] == [expected, method, dataset, tasks]).all(axis=1)
    ]
    assert paper_accuracy(given) == float(found["accuracy"].iloc[0]) / 100
    for other in ({"scale": "0.7"}, {"tag": "mine"}, {"model": "tiny"}, {"stream": "domain"}):
        if other != {"scale": "0.7"} or given["scale"]:
            assert math.isnan(paper_accuracy({**given, **other}))


def test_best_and_second_leave_the_bounds_out():
    values = {"joint": 0.9, "seq": 0.7, "ind": 0.8, "lwf": 0.6, "ewc": 0.80001}
    table = aggregate(pd.DataFrame([line(method=m, final_accuracy=a) for m, a in values.items()]))
    rank = dict(zip(table["method"], ranks(table), strict=True))
    assert rank == {"joint": 0, "ind": 1, "ewc": 1, "seq": 2, "lwf": 3}


def test_the_papers_layout_has_blanks_where_nothing_was_measured():
    lines = [line(final_accuracy=0.5), line(tasks=5, final_accuracy=0.6), line(method="ind", final_accuracy=0.7)]
    ((title, cells),) = overview(aggregate(pd.DataFrame(lines)), lambda mean, deviation, rank: percent(mean))
    assert title == "class-incremental, tiny"
    assert cells.loc["sequential, last task"].tolist() == ["50.00", "60.00", "55.00"]  # and their average
    assert cells.loc["independent, last task"].tolist() == ["70.00", "", ""]


def test_latex(tmp_path):
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


def test_every_special_character_of_latex():
    assert escaped(r"a_b%c&d#e$f{g}h~i^j\k") == (
        r"a\_b\%c\&d\#e\$f\{g\}h\textasciitilde{}i\textasciicircum{}j\textbackslash{}k"
    )


def write(root, method="seq", seed=1, accuracy=0.5, strategy=None, scale=0.5, tasks=2, **changes):
    """A metrics.json as a training or a merge writes it."""
    config = {"dataset": {"name": "digits"}, "stream": {"name": "class"}, "model": {"name": "tiny"}, "tasks": tasks}
    config |= {"method": {"id": method}, "seed": seed, "tag": None, "root": f"somewhere/{seed}", **changes}
    row = [accuracy] * tasks
    content = {"schema_version": 1, "kind": "merge" if strategy else "train", "config": config}
    content |= {"zero_shot": {"task_agnostic": row, "task_aware": row, "overall": accuracy}}
    rows = [[accuracy + 0.01 * i] * tasks for i in range(tasks)]
    content |= {"accuracy": {"task_agnostic": rows, "task_aware": rows}}
    content |= {"overall": [r[0] for r in rows], "seen": [r[0] for r in rows]}
    content |= {"summary": {"final_accuracy": accuracy, "forgetting": 0.1}, "timing": {"total": 2.0}}
    content |= {"provenance": {"base_sha256": "a"}, "environment": {"mergestream": "0"}}
    config["candidates"] = [0.5]
    folder = root / f"digits/class-{tasks}/tiny/{method}/seed-{seed}"
    if strategy:
        content["merge"] = {"strategy": strategy, "scale": scale, "options": {}, "changed": {}}
        folder = folder / f"merges/{strategy}-{scale}"
    files.write_json(folder / "metrics.json", content)
    return folder


@pytest.fixture
def root(tmp_path):
    """Three seeds of two methods, and merges with four λ."""
    for seed in (1, 2, 3):
        for method, gain in (("seq", 0.0), ("ind", 0.1)):
            write(tmp_path, method, seed, 0.4 + gain + 0.01 * seed**2)
            for scale in (0.3, 0.5, 0.7, 1):
                write(tmp_path, method, seed, 0.6 + 0.2 * gain + 0.01 * seed - (scale - 0.5) ** 2, "magmax", scale)
    return tmp_path


def test_what_is_written(root):
    outcome = command("report.py", f"root={root}")
    assert outcome.code == 0, outcome.err
    assert "62.00 ± 1.00" in outcome.out
    out = root / "_report"
    names = ["class-tiny-comparison.png"]
    names += [f"digits-class-2-tiny-{kind}.png" for kind in ("curves", "lambda", "matrices")]
    names += ["report.csv", "report.html", "report.md", "report.tex", "runs.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    table = pd.read_csv(out / "report.csv", keep_default_na=False)
    assert set(ROW) <= set(table.columns)
    assert len(table) == 10
    assert len(pd.read_csv(out / "runs.csv")) == 30
    text = (out / "report.md").read_text()
    assert "| MaxAbs, λ = 0.5 | **64.00 ± 1.00** |" in text
    assert "| MagMax, λ = 0.5 | <u>62.00 ± 1.00</u> |" in text
    for name in names[:4]:
        assert f"]({name})" in text
        with Image.open(out / name) as image:
            assert image.size[0] > 400
    before = {path: path.read_bytes() for path in out.iterdir() if path.suffix in (".csv", ".tex", ".png")}
    assert command("report.py", f"root={root}").code == 0  # its own files are no results
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 in a process with threads, as here
def test_pictures_are_the_same_by_many_processes(root, monkeypatch):
    pictures = []
    for many in (9, 1):
        monkeypatch.setattr("mergestream.reporting.run.MANY", many)
        assert command("report.py", f"root={root}").code == 0
        pictures.append({path.name: path.read_bytes() for path in sorted((root / "_report").glob("*.png"))})
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 4


def test_the_baseline_is_chosen(root):
    outcome = command("report.py", f"root={root}", "baseline='MaxAbs, λ = 0.5'")
    assert outcome.code == 0, outcome.err
    assert "− MaxAbs, λ = 0.5" in outcome.out
    outcome = command("report.py", f"root={root}", "baseline=maxabs")
    assert outcome.code == 1
    assert "baseline must be a row of the report; got baseline=maxabs. The nearest: " in outcome.err
    typed = shlex.split(outcome.err.split("The nearest: ")[1])
    assert command("report.py", f"root={root}", typed[0]).code == 0


def test_what_cannot_be_used_is_named_and_left_out(root, monkeypatch):
    folders = {name: write(root, name, 1) for name in ("truncated", "altered", "later", "lacking", "without")}
    content = (folders["truncated"] / "metrics.json").read_text()
    (folders["truncated"] / "metrics.json").write_text(content[:100])
    (folders["altered"] / "metrics.json").write_text(content.replace("0.5", "0.9"))
    for name, change in (("later", {"schema_version": 2}), ("lacking", {"config": {}})):
        whole = files.read_json(folders[name] / "metrics.json")
        files.write_json(folders[name] / "metrics.json", {**whole, **change})
    whole = files.read_json(folders["without"] / "metrics.json")
    files.write_json(folders["without"] / "metrics.json", {k: v for k, v in whole.items() if k != "seen"})
    orphan = write(root, "orphan", 1, strategy="magmax")
    foreign = root / "foreign/metrics.json"
    foreign.parent.mkdir()
    foreign.write_text(json.dumps({"loss": 1.0}))
    copy = root / "backup"
    shutil.copytree(root / "digits/class-2/tiny/seq/seed-1", copy, ignore=shutil.ignore_patterns("merges"))
    unfinished = root / "digits/class-2/tiny/seq/seed-9"
    (unfinished / "task-00").mkdir(parents=True)
    for name in ("config.yaml", "stream.json", "task-00/evaluation.json"):
        (unfinished / name).write_text("")
    (root / "linked").symlink_to(root / "digits")
    half = root / "digits/class-2/tiny/ind/seed-1/merges/ties-1"
    half.mkdir()
    (half / "merged.safetensors").touch()
    locked, read = write(root, "ind", 8) / "metrics.json", files.read_json

    def refuse(path, *keys, own=False):
        if path == locked:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path, *keys, own=own)

    monkeypatch.setattr(files, "read_json", refuse)
    reasons = {item.path: item.reason for item in collect(root).left_out}
    assert len(reasons) == 12
    for path, reason in (
        (folders["truncated"] / "metrics.json", "cannot be read"),
        (folders["altered"] / "metrics.json", "not as it was written"),
        (folders["later"] / "metrics.json", "its schema_version is 2"),
        (folders["lacking"] / "metrics.json", "it is no metrics.json of this version"),
        (folders["without"] / "metrics.json", "it has no seen"),
        (orphan / "metrics.json", "its training has not finished"),
        (root / "linked", "it is a link"),
        (half, "it has not finished"),
        (locked, "Permission denied"),
        (foreign, "it is not of mergestream"),
        (unfinished, "it has not finished (tasks done: 1)"),
    ):
        assert reason in reasons[path]
    outcome = command("report.py", f"root={root}")
    assert outcome.code == 1  # some of it is damage
    assert len(outcome.err.strip().splitlines()) == 1
    assert "the report is written, without" in outcome.err
    for text in ((root / "_report/report.md").read_text(), (root / "_report/report.html").read_text()):
        assert all(f"{path}<" in text or f"{path}`" in text for path in reasons)
    assert outcome.out.count("left out: ") == len(reasons)
    assert len(pd.read_csv(root / "_report/runs.csv")) == 30


def test_roots_within_the_root_are_their_own(root):
    inner = root / "demo"
    write(inner, "ewc", 1)
    (inner / "_base").mkdir()
    outcome = command("report.py", f"root={root}")
    assert outcome.code == 0, outcome.err
    assert f"python report.py root={inner}" in outcome.out
    assert len(pd.read_csv(root / "_report/runs.csv")) == 30
    assert command("report.py", f"root={inner}").code == 0
    assert len(pd.read_csv(inner / "_report/runs.csv")) == 1


def test_a_copy_does_not_take_the_place_of_a_run(root):
    shutil.copytree(root / "digits", root / "backup")
    found = collect(root)
    assert len(found.runs) == len(found.left_out) == 30
    assert all(path.startswith(f"{root}/digits/") for path in found.runs["path"])
    assert all(item.path.is_relative_to(root / "backup") for item in found.left_out)
    assert [content["config"]["seed"] for content in found.contents] == list(found.runs["seed"])


def test_any_name_that_a_run_can_have_is_found(root, monkeypatch):
    write(root, "logs", 1)
    write(root, "task-free", 1)
    assert {"logs", "task-free"} <= set(collect(root).runs["method"])
    scan = os.scandir

    def refuse(path):
        if str(path).endswith("/task-free"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    (problem,) = collect(root).left_out
    assert problem.path == root / "digits/class-2/tiny/task-free"
    assert problem.reason == "it cannot be read (Permission denied)"


def test_bounds_alone_are_a_report(tmp_path):
    write(tmp_path, "zeroshot")
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 0, outcome.err
    assert not list((tmp_path / "_report").glob("*comparison*"))


def test_half_finished_runs_are_no_failure(root):
    (root / "digits/class-2/tiny/seq/seed-9").mkdir()
    for name in ("config.yaml", "stream.json"):
        (root / "digits/class-2/tiny/seq/seed-9" / name).write_text("")
    outcome = command("report.py", f"root={root}")
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


def test_merges_selected_from_other_candidates_are_not_averaged(tmp_path):
    for seed, candidates in ((1, [0.5]), (2, [0.5, 1.0])):
        write(tmp_path, seed=seed)
        path = write(tmp_path, seed=seed, strategy="magmax") / "metrics.json"
        content = files.read_json(path)
        content["config"]["candidates"] = candidates
        files.write_json(path, {**content, "merge": {**content["merge"], "selected_on": "validation"}})
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 1
    assert "seed 1 has candidates=[0.5], seed 2 has candidates=[0.5, 1.0]" in outcome.err


def test_names_fold_but_stay(capsys):
    columns = ["%", *(f"a wide heading {i}" for i in range(6))]
    display.table("title", columns, [["a name of more than twenty letters", *["12.34 ± 5.67"] * 6]])
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("a name", "more", "twenty", "letters"))


def test_a_name_with_brackets_is_shown(capsys):
    display.table("a [title]", ["%", "n [heads]"], [["seq [tuned-alone]", "1 [pair]"]])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("a [title]", "n [heads]", "seq [tuned-alone]", "1 [pair]"))


def test_any_name_can_be_drawn(tmp_path):
    for name in ("a$\\x$b", "a_b", "a-b"):
        for tag in (None, "pays $1"):
            write(tmp_path, seed=1, dataset={"name": name}, tag=tag)
            shutil.move(tmp_path / "digits", tmp_path / f"{len(list(tmp_path.iterdir()))}")
    assert command("report.py", f"root={tmp_path}").code == 0
    assert len(list((tmp_path / "_report").glob("*curves.png"))) == 3


def test_bad_roots(tmp_path):
    (tmp_path / "file").touch()
    for overrides, message in (
        ([f"root={tmp_path}"], "has none"),
        ([f"root={tmp_path}/nothing"], "root must be a folder with runs"),
        ([f"root={tmp_path}", f"out={tmp_path}/file"], "out must be a folder"),
    ):
        outcome = command("report.py", *overrides)
        assert outcome.code == 1
        assert len(outcome.err.strip().splitlines()) == 1
        assert message in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


class Links(HTMLParser):
    """Everything that a page would fetch."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "action") and value]


def test_the_page_needs_no_network(root):
    assert command("report.py", f"root={root}").code == 0
    text = (root / "_report/report.html").read_text()
    links = Links()
    links.feed(text)
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in links.found)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest|https?://", text)


def test_a_report_imports_no_torch():
    """Which would take longer than most reports."""
    code = "import sys, mergestream.reporting.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


BROWSER = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)
CLICKS = """<script>
const wait = () => new Promise(resolve => setTimeout(resolve, 50));
addEventListener("load", async () => {
  while (!document.querySelector("#runs tbody tr")) await wait();
  const results = document.getElementById("results"), runs = document.getElementById("runs"), said = {};
  const names = place => [...place.querySelectorAll("tbody tr")].map(row => row.children[0].textContent);
  const type = (place, words) => {
    const field = place.querySelector("input"); field.value = words; field.dispatchEvent(new Event("input"));
  };
  said.before = names(results);
  const head = [...results.querySelectorAll("th")].find(cell => cell.dataset.key === "final_accuracy");
  head.click();
  said.after = names(results);
  said.sorted = head.getAttribute("aria-sort");
  const scale = results.querySelector("th[data-key=scale] button"); scale.click(); scale.click();
  said.scales = [...results.querySelectorAll("tbody tr")].map(row => row.children[5].textContent);
  type(results, "joint 3");
  results.querySelector("tbody tr").click();
  said.borrowed = names(runs);
  type(results, "maxabs 0.7");
  said.filtered = names(results);
  results.querySelector("tbody tr").click();
  said.runs = names(runs);
  runs.querySelector("tbody tr").click();
  await wait();
  said.detail = document.getElementById("detail").innerText;
  said.overview = document.getElementById("overview").hidden;
  document.body.replaceChildren(JSON.stringify(said));
});
</script>"""


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_sorting_and_filtering_in_a_browser(root, tmp_path):
    write(root, "joint", 1, 0.1)  # the last row; it stands at three tasks too, where another run is
    write(root, "ewc", 1, 0.2, tasks=3)
    selected = write(root, "ewc", 1, 0.3, "magmax", tasks=3) / "metrics.json"
    content = files.read_json(selected)
    files.write_json(selected, {**content, "merge": {**content["merge"], "selected_on": "validation"}})
    assert command("report.py", f"root={root}").code == 0
    page = tmp_path / "clicked.html"
    page.write_text((root / "_report/report.html").read_text().replace("</html>", CLICKS + "</html>"))
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    arguments += ["--virtual-time-budget=20000", "--dump-dom", f"file://{page}"]
    shown = subprocess.run([BROWSER, *arguments], capture_output=True, text=True, timeout=120).stdout
    said = json.loads(
        re.search(r"<body>(\{.*\})</body>", shown, re.DOTALL)[1].replace("&lt;", "<").replace("&gt;", ">")
    )
    assert len(said["before"]) == 14
    assert said["before"][0] == "MaxAbs, λ = 0.5"
    assert said["after"] == said["before"][::-1]
    assert said["sorted"] == "ascending"
    assert said["scales"] == ["0.3", "0.3", "0.5", "0.5", "0.7", "0.7", "1", "1", "on validation", "", "", "", "", ""]
    assert said["borrowed"] == ["Joint"]
    assert said["filtered"] == ["MaxAbs, λ = 0.7"]
    assert said["runs"] == ["MaxAbs, λ = 0.7"] * 3
    assert said["overview"] is True
    assert "seed" in said["detail"]
    assert "zero-shot" in said["detail"]
