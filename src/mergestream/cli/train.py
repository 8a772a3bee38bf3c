"""``train.py``, ``mergestream-train``: train a stream of tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from mergestream.cli.command import Command, print_error
from mergestream.cli.dry_run import Look
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError
from mergestream.runtime.interrupt import Signals

if TYPE_CHECKING:  # takes as long to import as Hydra itself
    from mergestream.compose.training import TrainingSettings
    from mergestream.runs.directory import Run


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    from mergestream.compose.training import training_settings
    from mergestream.training.arrivals import last_change, wait_for_change

    settings = training_settings(cfg)
    config = OmegaConf.to_container(cfg)  # resolved by now; what is recorded may say less, such as no number of tasks
    if settings.watch is None:
        _train(settings, config, signals)
        return
    changed = last_change(settings.watched)
    _train(settings, config, signals)
    while True:
        signals.listen()  # Lightning has its own handlers
        print(f"waiting for tasks to arrive in {settings.watched}; Ctrl-C ends it")
        changed = wait_for_change(settings.watched, changed, settings.watch)
        try:
            _train(settings, config, signals)
        except UserError as error:  # the next change may mend it
            print_error(str(error))


def _train(settings: TrainingSettings, config: Any, signals: Signals) -> None:
    """Train what is there, and bring the merges of the run up to date.

    Args:
        settings: of the run.
        config: what they were made from.
        signals: of this process.
    """
    from mergestream.compose.merging import outdated_merges
    from mergestream.merging.run import merge_run
    from mergestream.training.launcher import device_count, launch

    devices = device_count(settings.devices, settings.fit.accelerator)
    launch(
        _train_here,
        config,
        settings.run,
        devices=devices,
        max_restarts=settings.max_restarts,
        signals=signals,
    )
    if settings.run.grows and processes.is_first():
        with processes.alone():
            for merge in outdated_merges(settings.run, config):
                merge_run(merge)


def _train_here(config: dict[str, Any], run: Run, signals: Signals) -> None:
    """Train in this process, which may be one of several; each builds its objects from the same config."""
    from mergestream.compose.training import training_settings
    from mergestream.training.run import train

    train(training_settings(DictConfig(config), run), signals)


def _look(cfg: DictConfig) -> Look:
    from mergestream.compose.training import training_settings

    run = training_settings(cfg).run
    return Look(run.result()["timing"]["total"] if run.finished() else None, (run.dataset, run.model, run.method))


main = Command(
    "train", _work, parallel=True, modules=("mergestream.training.run", "mergestream.merging.run"), look=_look
)
