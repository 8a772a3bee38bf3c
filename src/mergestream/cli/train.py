"""``train.py``, ``mergestream-train``: train a stream of tasks."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from mergestream.cli.command import Command
from mergestream.runtime.interrupt import Signals


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    from mergestream.compose.training import training_settings
    from mergestream.training.launcher import launch

    settings = training_settings(cfg)
    launch(_train_here, settings.config, settings.run, devices=settings.devices, signals=signals, **settings.launcher)


def _train_here(config: dict[str, Any], run: Any, signals: Signals) -> None:
    """Train in this process, which may be one of several; each builds its objects from the same config."""
    from mergestream.compose.training import training_settings
    from mergestream.training.run import train

    train(training_settings(DictConfig(config), run), signals)


main = Command("train", _work)
