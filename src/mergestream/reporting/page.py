"""report.html: one file that holds everything and needs no network."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mergestream.reporting.collect import HASHES, LeftOut
from mergestream.reporting.rows import BENCHMARK, benchmark_title, measures_of
from mergestream.reporting.tables import ranks
from mergestream.runs.results import Metrics
from mergestream.strategies.reference import Reference, references

ABOUT = ("provenance", "environment", "git", "timing", "merge", "spikes", "method")  # on the page of a run
TEMPLATES = Environment(
    loader=PackageLoader("mergestream.reporting", "."),
    autoescape=select_autoescape(["html", "html.j2"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


class Picture(NamedTuple):
    """A rendered figure: its caption, the name of its file, and its content."""

    caption: str
    file: str
    png: bytes


class Section(NamedTuple):
    """A part of the report: a Markdown table, notes and pictures under one title."""

    title: str
    table: str
    notes: list[str]
    pictures: list[Picture]


class Heading(NamedTuple):
    """The facts at the top of a report."""

    title: str
    root: str
    when: str
    baseline: str


def markdown_page(
    table: pd.DataFrame, sections: Sequence[Section], left_out: Sequence[LeftOut], heading: Heading
) -> str:
    """Return report.md; the arguments are those of `html_page`."""
    template = TEMPLATES.get_template("report.md.j2")
    return template.render(heading=heading, sections=sections, published=_published(table), left_out=left_out)


def html_page(
    table: pd.DataFrame,
    runs: pd.DataFrame,
    metrics: Sequence[Metrics],
    sections: Sequence[Section],
    left_out: Sequence[LeftOut],
    heading: Heading,
) -> str:
    """Return report.html.

    Args:
        table: the rows, from `statistics.compare`.
        runs: the runs, as in `Collected`, with names.
        metrics: as in `Collected`; the index of `runs` points into it.
        sections: the pictures and the notes.
        left_out: what the report leaves out.
        heading: the facts at the top.
    """
    images = [
        (section.title, [(p.caption, base64.b64encode(p.png).decode()) for p in section.pictures])
        for section in sections
        if section.pictures
    ]
    return TEMPLATES.get_template("report.html.j2").render(
        heading=heading,
        images=images,
        notes=[(section.title, note) for section in sections for note in section.notes],
        published=_published(table),
        left_out=left_out,
        data=_packed({"rows": _rows(table), "runs": _runs(runs, metrics), "measures": _measured(runs)}),
    )


def _published(table: pd.DataFrame) -> dict[str, Reference]:
    """Return where the strategies of the rows were published."""
    return {name: reference for name, reference in references().items() if name in set(table["strategy"])}


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as the script reads them."""
    rows = table.assign(rank=ranks(table), scale=table["scale"].map(_sortable), benchmark=_titles(table))
    return _without_nan(rows.drop(columns=["options", "tag"]).to_dict("records"))


def _measured(runs: pd.DataFrame) -> dict[str, str]:
    """Return the measures that any run has, and their titles."""
    return {key: title for key, title in measures_of(runs).items() if runs[key].notna().any()}


def _runs(runs: pd.DataFrame, metrics: Sequence[Metrics]) -> list[dict[str, Any]]:
    """Return the runs as the script reads them, with the content of their pages."""
    shown = runs.assign(scale=runs["scale"].map(_sortable), benchmark=_titles(runs))
    lines = _without_nan(shown.drop(columns=["options", "tag", *HASHES]).to_dict("records"))
    for line, index in zip(lines, runs.index, strict=True):
        content = metrics[index]
        line["config"] = content["config"]
        line["about"] = {key: content[key] for key in ABOUT if content.get(key) is not None}
        for kind in ("task_agnostic", "task_aware"):
            line[kind] = [content["zero_shot"][kind], *content["accuracy"][kind]]
    return lines


def _titles(lines: pd.DataFrame) -> list[str]:
    return [benchmark_title(*key) for key in lines[BENCHMARK].itertuples(index=False, name=None)]


def _sortable(scale: str) -> float | str | None:
    """Return λ as a value that the script can sort."""
    return float(scale) if scale not in ("", "selected") else "on validation" if scale else None


def _without_nan(records: list[dict[Any, Any]]) -> list[dict[str, Any]]:
    """Replace NaN, which JSON lacks, by None."""
    return [
        {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()} for record in records
    ]


def _packed(data: Mapping[str, Any]) -> str:
    """Return compressed JSON, which the script unpacks; configs repeat the same values many times."""
    return base64.b64encode(gzip.compress(json.dumps(data).encode(), compresslevel=3, mtime=0)).decode()
