"""What the figures of a report show."""

from __future__ import annotations

import math
import shutil

import pandas as pd
import pytest
from helpers import command
from made_up import line, write

from mergestream.reporting import figures
from mergestream.reporting.figures import forgetting
from mergestream.reporting.statistics import aggregate


def test_forgetting_by_hand():
    # After task 2: 0.9 − 0.6. After task 3: of the first 0.9 − 0.7, of the second 0.8 − 0.9.
    assert forgetting([[0.9, 0.1, 0.1], [0.6, 0.8, 0.2], [0.7, 0.9, 0.5]]) == pytest.approx([0.3, (0.2 - 0.1) / 2])


def test_magmax_and_the_rows_of_the_paper_are_always_shown():
    best = [f"seq + {i}" for i in range(40)]
    names = [*best[:30], "MaxAbs", *best[30:], "EWC", "MagMax, λ = 0.3"]
    assert figures._select(names, 32) == [*best[:29], "MaxAbs", "EWC", "MagMax, λ = 0.3"]
    assert figures._select(names, 1) == ["MagMax, λ = 0.3"]
    assert figures._select(names, 99) == names


def test_the_comparison_by_hand():
    """Of rows with a mean of 0.5 − 0.01 i, a seed 0.01 above it and one below it, and of MagMax, which is the last."""
    values = [({"strategy": str(i)}, 0.5 - 0.01 * i) for i in range(40)]
    values += [({"strategy": "magmax", "scale": "0.5"}, 0.05), ({"method": "joint"}, 0.9)]
    lines = [line(**v, seed=s, final_accuracy=a + gain) for v, a in values for s, gain in ((1, -0.01), (2, 0.01))]
    ((name, caption, figure),) = figures.stream_figures(aggregate(pd.DataFrame(lines)))
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
    found = {name: figure for name, _, figure in figures.benchmark_figures(runs, dict(enumerate(contents)))}
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
    ((name, _, figure),) = figures.benchmark_figures(pd.DataFrame(lines), contents)
    (curve,) = figure.axes[0].lines
    assert (name, curve.get_label()) == ("lambda", "MagMax")
    assert curve.get_xdata() == pytest.approx([0.25, 0.5, 1])
    assert curve.get_ydata() == pytest.approx([25, 45, 35])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # of Python 3.12 in a process with threads, as here
def test_processes_draw_the_same_pictures(made_up_root, monkeypatch):
    pictures = []
    for few in (9, 1):
        monkeypatch.setattr("mergestream.reporting.run.FEW", few)
        assert command("report.py", f"root={made_up_root}").code == 0
        pictures.append({path.name: path.read_bytes() for path in sorted((made_up_root / "_report").glob("*.png"))})
    assert pictures[0] == pictures[1]
    assert len(pictures[0]) == 4


def test_names_with_special_characters_can_be_drawn(tmp_path):
    for name in ("a$\\x$b", "a_b", "a-b"):
        for tag in (None, "pays $1"):
            write(tmp_path, seed=1, dataset={"name": name}, tag=tag)
            shutil.move(tmp_path / "digits", tmp_path / f"{len(list(tmp_path.iterdir()))}")
    assert command("report.py", f"root={tmp_path}").code == 0
    assert len(list((tmp_path / "_report").glob("*curves.png"))) == 3
