"""``evaluate.py``, ``mergestream-evaluate``: measure an encoder of a run on data sets that it was not trained on."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from mergestream.cli.command import Command
from mergestream.runtime.interrupt import Signals


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    from mergestream.compose.held_out import held_out_settings
    from mergestream.retention import measure

    measure(held_out_settings(cfg, shared))


main = Command("evaluate", _work, modules=("mergestream.compose.held_out", "mergestream.retention"))
