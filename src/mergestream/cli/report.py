"""``report.py``, ``mergestream-report``: report every result under a root."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from mergestream.cli.command import Command
from mergestream.runtime.interrupt import Signals


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    from mergestream.compose.report import report_settings
    from mergestream.reporting.run import report

    settings = report_settings(cfg)
    report(settings.root, settings.out, settings.baseline)


main = Command("report", _work)
