"""The settings of report.py; imports no torch, so that a report starts fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from mergestream.compose import checks
from mergestream.compose.overrides import require_read


@dataclass(frozen=True)
class ReportSettings:
    """What report.py needs: the folder with the results, the one for the report, and the name of the baseline."""

    root: Path
    out: Path
    baseline: str | None


def report_settings(cfg: DictConfig) -> ReportSettings:
    """Check a config of report.yaml and return its settings.

    Raises:
        UserError: if root is not a folder, or out is a file.
    """
    require_read(cfg)
    OmegaConf.resolve(cfg)
    checks.check_report(cfg)
    return ReportSettings(Path(cfg.root), Path(cfg.out), cfg.baseline)
