"""``train.py``, ``mergestream-train``: train a stream of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from mergestream.cli.command import Command
from mergestream.runtime.interrupt import Signals

if TYPE_CHECKING:  # takes as long to import as Hydra itself
    from mergestream.runs.directory import Run


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    from mergestream.compose.training import training_settings
    from mergestream.training.launcher import device_count, launch

    settings = training_settings(cfg)
    devices = device_count(settings.devices, settings.fit.accelerator)
    launch(
        _train_here,
        settings.config,
        settings.run,
        devices=devices,
        max_restarts=settings.max_restarts,
        signals=signals,
    )


def _train_here(config: dict[str, Any], run: Run, signals: Signals) -> None:
    """Train in this process, which may be one of several; each builds its objects from the same config."""
    from mergestream.compose.training import training_settings
    from mergestream.training.run import train

    train(training_settings(DictConfig(config), run), signals)


main = Command("train", _work, parallel=True)
