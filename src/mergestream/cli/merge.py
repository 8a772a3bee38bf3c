"""``merge.py``, ``mergestream-merge``: merge the encoders of a run, or any checkpoints."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from mergestream.cli.command import Command
from mergestream.cli.dry_run import Look
from mergestream.runtime.interrupt import Signals


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    from mergestream.compose.merging import FileMerge, merge_settings
    from mergestream.merging.files import merge_files
    from mergestream.merging.run import merge_run

    settings = merge_settings(cfg, shared)
    if isinstance(settings, FileMerge):
        merge_files(settings)
    else:
        signals.saved |= merge_run(settings)


def _look(cfg: DictConfig) -> Look:
    from mergestream.compose.merging import FileMerge, merge_settings
    from mergestream.merging.run import seconds_of

    settings = merge_settings(cfg, {})
    if isinstance(settings, FileMerge):
        return Look(None, ())
    kind = (settings.run.dataset, settings.run.model, settings.bound.strategy.name)
    return Look(seconds_of(settings), kind)


main = Command("merge", _work, modules=("mergestream.compose.merging", "mergestream.merging.run"), look=_look)
