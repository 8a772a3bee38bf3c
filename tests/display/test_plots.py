"""Figures as files."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib import rcParams

from mergestream.display import plots


def figure(title="a"):
    drawn, (axes,) = plots.subplots(1, 1, (3, 2))
    axes.plot([1, 2, 3], [1, 4, 9], label=title)
    axes.set(title=title, xlabel=title)
    axes.legend()
    axes.annotate(title, (1, 1))
    return drawn


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_figures_give_equal_files(kind):
    assert plots.render(figure(), kind) == plots.render(figure(), kind) != plots.render(figure("b"), kind)


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_dollars_and_backslashes_are_shown_as_they_are(kind):
    assert rcParams["text.parse_math"]  # the default, which the project leaves as it is
    content = plots.render(figure(r"costs $\x$"), kind)
    assert content != plots.render(figure("costs "), kind)
    if kind == "svg":
        assert rb"costs $\x$" in content
    assert rcParams["text.parse_math"]


def test_mean_and_deviation_by_hand():
    _, (axes,) = plots.subplots(1, 1, (3, 2))
    plots.plot_mean(axes, [1, 2], np.array([[0.1, 0.5], [0.3, 0.5]]), "black", "two seeds")
    (line,), (band,) = axes.lines, axes.collections
    assert line.get_ydata() == pytest.approx([20, 50])
    heights = band.get_paths()[0].vertices
    deviation = 100 * np.sqrt(2 * 0.1**2)
    assert sorted(set(heights[heights[:, 0] == 1, 1])) == pytest.approx([20 - deviation, 20 + deviation])
    assert set(heights[heights[:, 0] == 2, 1]) == {50}


def test_one_repetition_has_no_deviation():
    _, (axes,) = plots.subplots(1, 1, (3, 2))
    plots.plot_mean(axes, [1, 2], np.array([[0.1, 0.5]]), "black", "one seed")
    assert axes.lines[0].get_ydata() == pytest.approx([10, 50])
    heights = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert sorted(set(heights.tolist())) == pytest.approx([10, 50])


def test_ticks_at_whole_numbers():
    _, (axes,) = plots.subplots(1, 1, (3, 2))
    axes.plot([1, 2], [1, 2])
    plots.integer_ticks(axes.xaxis)
    assert all(tick == round(tick) for tick in axes.get_xticks())
    assert any(tick != round(tick) for tick in axes.get_yticks())
