"""Where the curves of training go: one function per option of the ``logger`` group."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from mergestream.runtime.errors import UserError


def none(path: Path, config: dict[str, Any]) -> None:
    """No log."""


def csv(path: Path, config: dict[str, Any]) -> Logger:
    """``logs/metrics.csv``: one row every few steps, all tasks on one x axis; a continued run writes ``logs-2``."""
    parts = len(list(path.glob("logs*")))
    return CSVLogger(path, name="", version=f"logs-{parts + 1}" if parts else "logs")


def tensorboard(path: Path, config: dict[str, Any]) -> Logger:
    """TensorBoard event files in ``logs``.

    Raises:
        UserError: if tensorboard is not installed.
    """
    try:
        return TensorBoardLogger(path, name="", version="logs")
    except ModuleNotFoundError as error:
        raise UserError("logger=tensorboard needs its package; type: pip install mergestream[tensorboard]") from error


def wandb(path: Path, config: dict[str, Any], project: str = "mergestream", **options: Any) -> Logger:
    """Weights & Biases, online when a key is there and offline otherwise; never a prompt.

    Args:
        path: the run directory; offline runs lie in ``wandb`` below it.
        config: the resolved config, shown beside the curves.
        project: W&B project.
        options: anything else that ``wandb.init`` takes (entity, group, tags, …).
    """
    import wandb as client

    if client.run is not None:  # of an earlier job of the sweep, which failed before it could close it
        client.finish()
    try:
        online = client.login(prompt=False)
    except (client.errors.AuthenticationError, client.errors.CommError, client.errors.UsageError) as error:
        print(f"wandb: not reachable or not accepted ({error}); logging offline", file=sys.stderr)
        online = False
    mode = options.pop("mode", "online" if online else "offline")
    settings = client.Settings(silent=True, console="off")
    return WandbLogger(
        project=project, save_dir=path, name=_name(path), config=config, mode=mode, settings=settings, **options
    )


def close(logger: Logger | None) -> None:
    """The stream has ended: the next job of a sweep must not log into this one's run."""
    if logger is not None:
        logger.finalize("success")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()


def _name(path: Path) -> str:
    """The run's directory below the root, which says dataset, stream, model, method and seed."""
    return "/".join(path.parts[-5:])
