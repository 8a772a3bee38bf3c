"""``merge.py``, ``mergestream-merge``: merge the encoders of a run, or any checkpoints."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from mergestream.cli.command import Command
from mergestream.runtime.interrupt import Signals


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    from mergestream.compose.merging import FileMerge, merge_settings
    from mergestream.merging.run import merge_files, merge_run

    settings = merge_settings(cfg, shared)
    if isinstance(settings, FileMerge):
        merge_files(settings)
    else:
        signals.saved |= merge_run(settings)


main = Command("merge", _work, modules=("mergestream.compose.merging", "mergestream.merging.run"))
