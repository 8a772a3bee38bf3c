"""report.html: one file with everything in it, which asks the network for nothing."""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from mergestream.reporting.collect import HASHES, LeftOut
from mergestream.reporting.rows import BENCHMARK, MEASURES, benchmark_title
from mergestream.reporting.tables import ranks

ABOUT = ("provenance", "environment", "git", "timing", "merge", "spikes", "method")  # shown on a run's own page
TEMPLATES = Environment(
    loader=PackageLoader("mergestream.reporting", "."),
    autoescape=select_autoescape(["html", "html.j2"]),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def page(
    table: pd.DataFrame,
    runs: pd.DataFrame,
    contents: Sequence[Mapping[str, Any]],
    pictures: Sequence[tuple[str, Sequence[tuple[str, str, bytes]]]],
    left_out: Sequence[LeftOut],
    facts: Mapping[str, Any],
) -> str:
    """
    Args:
        table: of `statistics.compare`.
        runs, contents: of `collect`; `runs.index` points into `contents`.
        pictures: for each benchmark its title and (caption, file, PNG).
        left_out: of `collect`.
        facts: title, when, root, baseline.
    """
    return TEMPLATES.get_template("report.html.j2").render(
        facts=facts,
        pictures=[(t, [(said, base64.b64encode(png).decode()) for said, _, png in drawn]) for t, drawn in pictures],
        left_out=left_out,
        data=_packed({"rows": _rows(table), "runs": _runs(runs, contents), "measures": MEASURES}),
    )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    rows = table.assign(rank=ranks(table), scale=table["scale"].map(_scale), benchmark=_titles(table))
    return _plain(rows.drop(columns=["options", "tag"]).to_dict("records"))


def _runs(runs: pd.DataFrame, contents: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The lines of the runs, and what their own pages show."""
    shown = runs.assign(scale=runs["scale"].map(_scale), benchmark=_titles(runs)).drop(
        columns=["options", "tag", *HASHES]
    )
    lines = _plain(shown.to_dict("records"))
    for line, index in zip(lines, runs.index, strict=True):
        content = contents[index]
        line["config"] = content["config"]
        line["about"] = {key: content[key] for key in ABOUT if content.get(key) is not None}
        for kind in ("task_agnostic", "task_aware"):
            line[kind] = [content["zero_shot"][kind], *content["accuracy"][kind]]
    return lines


def _titles(lines: pd.DataFrame) -> list[str]:
    return [benchmark_title(*key) for key in lines[BENCHMARK].itertuples(index=False, name=None)]


def _scale(scale: str) -> float | str | None:
    """λ as what a table can sort."""
    return float(scale) if scale not in ("", "selected") else "on validation" if scale else None


def _plain(records: list[dict[Any, Any]]) -> list[dict[str, Any]]:
    """Without NaN, which JSON has not."""
    return [
        {str(k): None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()} for record in records
    ]


def _packed(data: Mapping[str, Any]) -> str:
    """Compressed, since configs say the same over and over; the page's script unpacks it."""
    return base64.b64encode(gzip.compress(json.dumps(data).encode(), compresslevel=3, mtime=0)).decode()
