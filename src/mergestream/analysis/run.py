"""Write the table and the figure of one analysis."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from mergestream.analysis.subject import Subject
from mergestream.compose.analysis import AnalysisSettings
from mergestream.compose.overrides import ADJUSTMENT_KEYS
from mergestream.display.plots import render
from mergestream.display.tables import console
from mergestream.runs.directory import readable
from mergestream.runs.identity import content_hash
from mergestream.runtime import files

NAME_LENGTH = 100  # of the options in a file name; longer ones are replaced by their hash


def analyze(settings: AnalysisSettings) -> None:
    """Analyse a finished run and write the figure as PNG and SVG and its numbers as CSV.

    An analysis that merges has the parameters ``strategy`` and ``scale``.

    Raises:
        UserError: if the run does not exist, has not finished, has another config, or cannot be analysed.
    """
    run, name = settings.run, settings.analysis.func.__name__
    run.require_finished()
    run.require_same(settings.config, settings.compared)
    parameters = inspect.signature(settings.analysis.func).parameters
    merging = {"strategy": settings.bound, "scale": settings.scale}
    used = {key: value for key, value in merging.items() if key in parameters}
    frame, figure = settings.analysis(Subject(run, settings.inputs), **used)

    groups = {"analysis", *("lambda" if key == "scale" else key for key in used)}
    groups |= {*ADJUSTMENT_KEYS} if "strategy" in used else set()
    stem = run.path / "analyses" / _file_name(name, [word for group, word in settings.words if group in groups])
    _write(stem, frame, figure)
    for group, word in settings.words:
        if group not in groups:
            print(f"{word} has no effect: analysis={name} does not use {group}")
    with pd.option_context("display.width", 120, "display.max_rows", 12):
        console().print(str(frame))
    print(f"figure in {readable(stem)}.png and .svg, its numbers in .csv")


def _file_name(analysis: str, words: Sequence[str]) -> str:
    """Return the name of the files: the analysis and the options that were typed for it."""
    options = "-".join(sorted(word.removeprefix("analysis.") for word in words if not word.startswith("analysis=")))
    short = options if len(options) < NAME_LENGTH else content_hash(options)[:16]
    return f"{analysis}-{short}".replace("/", "_") if options else analysis


def _write(stem: Path, frame: pd.DataFrame, figure: Figure) -> None:
    for kind in ("png", "svg"):
        with files.whole(stem.with_name(f"{stem.name}.{kind}")) as partial:
            partial.write_bytes(render(figure, kind))
    with files.whole(stem.with_name(f"{stem.name}.csv")) as partial:
        frame.to_csv(partial, index=False)
