"""``analyze.py``, ``mergestream-analyze``: draw a figure of a run's task vectors."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from mergestream.cli.command import Command
from mergestream.runtime.interrupt import Signals


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    from mergestream.analysis.run import analyze
    from mergestream.compose.analysis import analysis_settings

    analyze(analysis_settings(cfg, shared))


main = Command("analyze", _work, modules=("mergestream.compose.analysis", "mergestream.analysis.run"))
