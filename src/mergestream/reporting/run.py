"""Write the report: one config in, tables, figures and a page out."""

from __future__ import annotations

import difflib
import gc
import math
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from mergestream.display import tables
from mergestream.display.plots import content
from mergestream.reporting import figures
from mergestream.reporting.collect import HASHES, Collected, LeftOut, collect
from mergestream.reporting.page import TEMPLATES, page
from mergestream.reporting.rows import BENCHMARK, benchmark_title, lent, names
from mergestream.reporting.statistics import aggregate, compare, split_by_protocol, untested, with_bounds
from mergestream.reporting.tables import latex, markdown, overview, percent
from mergestream.runs.directory import readable
from mergestream.runs.results import now
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.processes import cores

SHOWN = 60  # rows of a benchmark on the screen; the files have all of them
MANY = 8  # pictures take longer than processes to draw them
Picture = tuple[str, str, bytes]  # caption, file, PNG
Job = tuple[str, Callable[..., Iterator[tuple[str, str, Figure]]], tuple[Any, ...]]  # title, what draws, of what


def report(cfg: DictConfig) -> None:
    """Print the tables of all finished runs and merges under ``root``, and write them with all that belongs to them.

    Raises:
        UserError: if there are none, the baseline is none of them, or finished ones had to be left out.
    """
    root, out = _folders(cfg)
    found = _collected(root)
    runs, refused = split_by_protocol(found.runs, found.contents)
    runs = runs.assign(name=names(runs)).sort_values(BENCHMARK, kind="stable")
    left_out = [*found.left_out, *refused]
    if runs.empty:
        why = f" that it can use ({left_out[0].path}: {left_out[0].reason})" if left_out else ". Type: python train.py"
        raise UserError(f"a report needs finished runs; root={cfg.root} has none{why}")
    baseline = _baseline(cfg.baseline, list(runs["name"].unique()))
    with_all_bounds = with_bounds(runs)
    table = compare(with_all_bounds, aggregate(with_all_bounds), baseline).sort_values(BENCHMARK, kind="stable")
    facts = {"title": f"mergestream: results under {root}", "root": str(root.resolve()), "when": now()}
    _write(out, runs, found.contents, table, left_out, {**facts, "baseline": baseline or "MagMax"})
    _print(table, baseline or "MagMax")
    for title in untested(table) if baseline is None else []:
        print(f"{title}: several λ of MagMax and none is the published one, so nothing is tested. Type baseline='NAME'")
    print(f"report in {readable(out / 'report.html')}")
    for item in left_out:
        print(f"left out: {readable(item.path)}: {item.reason}")
    if unsound := [item for item in left_out if not item.sound]:
        more = f" ({len(unsound) - 1} more)" if len(unsound) > 1 else ""
        raise UserError(f"the report is written, without {readable(unsound[0].path)}: {unsound[0].reason}{more}")


def _collected(root: Path) -> Collected:
    """`collect`, without garbage collections, each of which would walk all that has been read."""
    gc.disable()
    try:
        return collect(root)
    finally:
        gc.freeze()  # for the processes that draw, too
        gc.enable()


def _folders(cfg: DictConfig) -> tuple[Path, Path]:
    if not isinstance(cfg.root, str) or not Path(cfg.root).is_dir():
        raise UserError(f"root must be a folder with runs; got root={cfg.root}. Type: python train.py")
    if not isinstance(cfg.out, str) or (Path(cfg.out).exists() and not Path(cfg.out).is_dir()):
        raise UserError(f"out must be a folder; got out={cfg.out}, which is none")
    return Path(cfg.root), Path(cfg.out)


def _baseline(wanted: Any, names: Sequence[str]) -> str | None:
    if wanted is None or wanted in names:
        return wanted
    near = difflib.get_close_matches(str(wanted), names, n=3, cutoff=0) or names
    typed = " ".join(f"\"baseline='{name}'\"" for name in near)
    raise UserError(f"baseline must be a row of the report; got baseline={wanted}. The nearest: {typed}")


def _write(
    out: Path,
    runs: pd.DataFrame,
    contents: Sequence[dict[str, Any]],
    table: pd.DataFrame,
    left_out: Sequence[LeftOut],
    facts: dict[str, Any],
) -> None:
    """report.md, report.tex, report.csv, runs.csv, report.html and the figures."""
    tables: list[str] = []
    jobs: list[Job] = []
    streams = table.groupby(["stream", "model"], sort=False)
    for (title, cells), (_, lines) in zip(overview(table, _emphasised), streams, strict=True):
        tables.append(markdown(cells))
        jobs.append((title, figures.of_stream, (lines,)))
    for key, lines in table.groupby(BENCHMARK, sort=False):
        of = runs[(runs[BENCHMARK] == list(key)).all(axis=1)]
        tables.append(markdown(_lines(lines, facts["baseline"])))
        jobs.append((benchmark_title(*key), figures.of_benchmark, (of, {index: contents[index] for index in of.index})))
    pictures = _drawn(jobs)
    for _, drawn in pictures:
        for _, name, png in drawn:
            with files.whole(out / name) as partial:
                partial.write_bytes(png)

    parts = [(title, cells, drawn) for cells, (title, drawn) in zip(tables, pictures, strict=True)]
    readme = TEMPLATES.get_template("report.md.j2").render(facts=facts, parts=parts, left_out=left_out)
    for name, text in (
        ("report.md", readme),
        ("report.tex", latex(table)),
        ("report.csv", table.to_csv(index=False)),
        ("runs.csv", runs.drop(columns=HASHES).to_csv(index=False)),
        ("report.html", page(table, runs, contents, pictures, left_out, facts)),
    ):
        with files.whole(out / name) as partial:
            partial.write_text(text)


def _drawn(jobs: Sequence[Job]) -> list[tuple[str, list[Picture]]]:
    """(title, pictures) of every job; where there are many, by a process for each core."""
    if len(jobs) < MANY:
        return [_draw(job) for job in jobs]
    with ProcessPoolExecutor(cores(), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        return list(pool.map(_draw, jobs))


def _draw(job: Job) -> tuple[str, list[Picture]]:
    title, found, given = job
    slug = re.sub(r"[^\w.]+", "-", title.replace("-incremental", "").replace(" tasks", ""))
    return title, [(said, f"{slug}-{name}.png", content(figure, "png")) for name, said, figure in found(*given)]


def _emphasised(mean: float, deviation: float, rank: int) -> str:
    text = percent(mean, deviation)
    return {1: f"**{text}**", 2: f"<u>{text}</u>"}.get(rank, text)


def _lines(lines: pd.DataFrame, baseline: str) -> pd.DataFrame:
    """One benchmark's rows as they are shown, best first."""
    baseline = lines["baseline"].max() or baseline
    ordered = lines.sort_values("final_accuracy", ascending=False, kind="stable")
    records = ordered.to_dict("records")
    shown = {
        "λ": [r["scale"].replace("selected", "on validation") for r in records],
        "seeds": [str(r["n"]) + (f" (of T = {r['trained_tasks']})" if lent(r) else "") for r in records],
        "final accuracy": [percent(r["final_accuracy"], r["final_accuracy_std"]) for r in records],
        "95 % CI": [f"± {percent(r['final_accuracy_ci95'])}" if r["n"] > 1 else "" for r in records],
        "avg. incremental": [percent(r["average_incremental_accuracy"]) for r in records],
        "forgetting": [percent(r["forgetting"]) for r in records],
        f"− {baseline}": [percent(r["minus_baseline"]) + _pairs(r) for r in records],
        "p": [_p(r["p"]) for r in records],
        "paper": [percent(r["paper"]) for r in records],
        "− paper": [percent(r["minus_paper"]) for r in records],
    }
    frame = pd.DataFrame(shown, index=pd.Index(ordered["name"], name=""))
    return frame.loc[:, (frame != "").any()]


def _pairs(line: Mapping[str, Any]) -> str:
    """How many seeds a difference is of, where it is not of all seeds of its row."""
    return f" ({line['pairs']} pairs)" if 0 < line["pairs"] < line["n"] else ""


def _p(value: float) -> str:
    return "" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _print(table: pd.DataFrame, baseline: str) -> None:
    """Every benchmark on the screen, its best `SHOWN` rows."""
    for key, lines in table.groupby(BENCHMARK, sort=False):
        shown = _lines(lines, baseline).drop(columns=["95 % CI", "avg. incremental", "− paper"], errors="ignore")
        rows = [[name, *row] for name, row in zip(shown.index[:SHOWN], shown.to_numpy()[:SHOWN], strict=True)]
        if len(shown) > SHOWN:
            rows.append([f"… {len(shown) - SHOWN} more", *[""] * len(shown.columns)])
        tables.table(benchmark_title(*key), ["%", *shown.columns], rows)
