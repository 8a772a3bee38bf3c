"""Draw one figure: one config in, a PNG, an SVG and the numbers as CSV out."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from mergestream.analysis.subject import Subject
from mergestream.compose import targets
from mergestream.compose.build import build
from mergestream.compose.checks import check_analysis, check_stream
from mergestream.display.plots import content
from mergestream.display.tables import console
from mergestream.runs.directory import Run, readable
from mergestream.runs.identity import NAMING_KEYS, content_hash, typed
from mergestream.runtime import files

OWN_KEYS = ("analysis", "strategy", "lambda")


def analyze(cfg: DictConfig) -> None:
    """Look at the run that the config names in the way of its ``analysis``.

    Raises:
        UserError: if the config or the run is not what it must be.
    """
    OmegaConf.resolve(cfg)
    check_analysis(cfg)
    check_stream(cfg)
    targets.allow(cfg.allow_targets)
    analysis: partial[Any] = build(cfg.analysis)
    words = typed()
    of_training = [(key, word) for key, word in words if key.split(".")[0] not in OWN_KEYS]
    run = Run.of(cfg, [word for key, word in of_training if key not in NAMING_KEYS])
    run.require_finished()
    run.require_same(cfg, ["dataset", "stream", "model", "method", "tasks", "seed", *(key for key, _ in of_training)])
    subject = Subject(cfg, run)
    frame, figure = analysis.func(subject, **analysis.keywords)
    own = [(key.split(".")[0], word) for key, word in words if key.split(".")[0] in OWN_KEYS]
    used = {"analysis", *subject.asked}
    name = _name(analysis.func.__name__, [word for key, word in own if key in used])
    for kind in ("png", "svg"):
        with files.whole(run.path / "analyses" / f"{name}.{kind}") as partial_file:
            partial_file.write_bytes(content(figure, kind))
    with files.whole(run.path / "analyses" / f"{name}.csv") as partial_file:
        frame.to_csv(partial_file, index=False)
    for word in [word for key, word in own if key not in used]:
        print(f"{word} is left out: analysis={analysis.func.__name__} does not ask for it")
    with pd.option_context("display.width", 120, "display.max_rows", 12):
        console().print(str(frame))
    print(f"figure in {readable(run.path / 'analyses' / name)}.png, .svg; its numbers in .csv")


def _name(analysis: str, words: Sequence[str]) -> str:
    """Of the figure's files: what was typed for it comes behind, or a hash of it where that is long."""
    changed = "-".join(sorted(w.removeprefix("analysis.") for w in words if not w.startswith("analysis=")))
    short = changed if len(changed) < 100 else content_hash(changed)[:16]
    return f"{analysis}-{short}".replace("/", "_") if changed else analysis
