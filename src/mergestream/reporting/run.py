"""Write a report: from the results under a root to files and tables on the screen."""

from __future__ import annotations

import difflib
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mergestream.display import tables
from mergestream.display.plots import render
from mergestream.reporting.collect import HASHES, LeftOut, collect
from mergestream.reporting.figures import CaptionedFigure, benchmark_figures, stream_figures
from mergestream.reporting.notes import notes
from mergestream.reporting.page import Heading, Picture, Section, html_page, markdown_page
from mergestream.reporting.retention import with_mean_retention
from mergestream.reporting.rows import BENCHMARK, benchmark_title, row_names
from mergestream.reporting.statistics import aggregate, borrow_bounds, compare, split_by_protocol, without_baseline
from mergestream.reporting.tables import benchmark_table, emphasised, latex, markdown, overview
from mergestream.runs.directory import readable
from mergestream.runs.results import Metrics, now
from mergestream.runtime import files
from mergestream.runtime.errors import UserError, program
from mergestream.runtime.processes import cores

SHOWN = 60  # rows of a benchmark on the screen; the files have all of them
FEW = 8  # with fewer sections, starting processes takes longer than drawing


class Job(NamedTuple):
    """A section whose figures are to be drawn: its title, its table, its notes, and the call that draws them."""

    title: str
    table: str
    notes: list[str]
    draw: Callable[..., Iterator[CaptionedFigure]]
    arguments: tuple[Any, ...]


def report(root: Path, out: Path, baseline: str | None) -> None:
    """Print a table for each benchmark, and write all files of the report.

    Args:
        root: the folder with the results.
        out: the folder for the report.
        baseline: the name of the row that the others are tested against; None is MagMax.

    Raises:
        UserError: if there are no results, no row has the name of the baseline, or results had to be left out.
    """
    found = collect(root)
    runs, refused = split_by_protocol(found.runs, found.protocols)
    runs = with_mean_retention(runs).assign(name=row_names(runs)).sort_values(BENCHMARK, kind="stable")
    left_out = [*found.left_out, *refused]
    if runs.empty:
        unusable = f" that it can use ({left_out[0].path}: {left_out[0].reason})" if left_out else ""
        why = unusable or f". Type: {program('train')}"
        raise UserError(f"a report needs finished runs; root={root} has none{why}")
    if baseline is not None:
        _require_row(baseline, list(runs["name"].unique()))
    with_bounds = borrow_bounds(runs)
    table = compare(with_bounds, aggregate(with_bounds), baseline).sort_values(BENCHMARK, kind="stable")
    title = f"mergestream: results under {root}"
    heading = Heading(title, str(root.resolve()), now(), baseline or "MagMax")
    sections = _write(out, runs, found.metrics, table, left_out, heading)
    _print(table, heading.baseline)
    for title, note in [(section.title, note) for section in sections for note in section.notes]:
        print(f"{title}: {note}")
    for benchmark in without_baseline(table) if baseline is None else []:
        print(
            f"{benchmark}: MagMax has several λ but not the published one, so nothing is tested. Type baseline='NAME'"
        )
    print(f"report in {readable(out / 'report.html')}")
    for item in left_out:
        print(f"left out: {readable(item.path)}: {item.reason}")
    if unexpected := [item for item in left_out if not item.expected]:
        more = f" ({len(unexpected) - 1} more)" if len(unexpected) > 1 else ""
        raise UserError(f"the report omits {readable(unexpected[0].path)}: {unexpected[0].reason}{more}")


def _require_row(baseline: str, names: Sequence[str]) -> None:
    if baseline in names:
        return
    near = difflib.get_close_matches(str(baseline), names, n=3, cutoff=0) or names
    typed = " ".join(f"\"baseline='{name}'\"" for name in near)
    raise UserError(f"baseline must be a row of the report; got baseline={baseline}. The nearest: {typed}")


def _write(
    out: Path,
    runs: pd.DataFrame,
    metrics: Sequence[Metrics],
    table: pd.DataFrame,
    left_out: Sequence[LeftOut],
    heading: Heading,
) -> list[Section]:
    """Write the figures, report.md, report.tex, report.csv, runs.csv and report.html; return the sections."""
    sections = _sections(_jobs(runs, metrics, table, heading.baseline))
    for picture in [picture for section in sections for picture in section.pictures]:
        with files.whole(out / picture.file) as partial:
            partial.write_bytes(picture.png)
    for name, text in (
        ("report.md", markdown_page(table, sections, left_out, heading)),
        ("report.tex", latex(table)),
        ("report.csv", table.to_csv(index=False)),
        ("runs.csv", runs.drop(columns=HASHES).to_csv(index=False)),
        ("report.html", html_page(table, runs, metrics, sections, left_out, heading)),
    ):
        with files.whole(out / name) as partial:
            partial.write_text(text)
    return sections


def _jobs(runs: pd.DataFrame, metrics: Sequence[Metrics], table: pd.DataFrame, baseline: str) -> list[Job]:
    """Return the sections: one for each stream and model, then one for each benchmark."""
    streams = table.groupby(["stream", "model"], sort=False)
    jobs = [
        Job(title, markdown(cells), [], stream_figures, (lines,))
        for (title, cells), (_, lines) in zip(overview(table, emphasised), streams, strict=True)
    ]
    for key, lines in table.groupby(BENCHMARK, sort=False):
        members = runs[(runs[BENCHMARK] == list(key)).all(axis=1)]
        arguments = (members, {index: metrics[index] for index in members.index})
        cells = markdown(benchmark_table(lines, baseline))
        jobs.append(Job(benchmark_title(*key), cells, notes(*arguments), benchmark_figures, arguments))
    return jobs


def _sections(jobs: Sequence[Job]) -> list[Section]:
    """Draw the figures of all sections, in a process for each core if there are many."""
    if len(jobs) < FEW:
        drawn = [_pictures(job) for job in jobs]
    else:
        with ProcessPoolExecutor(cores(), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
            drawn = list(pool.map(_pictures, jobs))
    return [Section(job.title, job.table, job.notes, pictures) for job, pictures in zip(jobs, drawn, strict=True)]


def _pictures(job: Job) -> list[Picture]:
    slug = re.sub(r"[^\w.]+", "-", job.title.replace("-incremental", "").replace(" tasks", ""))
    found = job.draw(*job.arguments)
    return [Picture(caption, f"{slug}-{name}.png", render(figure, "png")) for name, caption, figure in found]


def _print(table: pd.DataFrame, baseline: str) -> None:
    """Print each benchmark, its best `SHOWN` rows."""
    for key, lines in table.groupby(BENCHMARK, sort=False):
        cells = benchmark_table(lines, baseline)
        shown = cells.drop(columns=["95 % CI", "avg. incremental", "harmonic mean", "− paper"], errors="ignore")
        rows = [[name, *row] for name, row in zip(shown.index[:SHOWN], shown.to_numpy()[:SHOWN], strict=True)]
        if len(shown) > SHOWN:
            rows.append([f"… {len(shown) - SHOWN} more", *[""] * len(shown.columns)])
        tables.table(benchmark_title(*key), ["%", *shown.columns], rows)
