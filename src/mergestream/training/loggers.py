"""Loggers of the training curves: one function per option of the ``logger`` group."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger

from mergestream.runtime.errors import UserError


def none(path: Path, config: dict[str, Any]) -> None:
    """Log nothing."""


def csv(path: Path, config: dict[str, Any]) -> Logger:
    """Log to ``logs/metrics.csv``, a row every few steps, all tasks on one x axis. A continued run adds ``logs-2``."""
    parts = len(list(path.glob("logs*")))
    return CSVLogger(path, name="", version=f"logs-{parts + 1}" if parts else "logs")


def tensorboard(path: Path, config: dict[str, Any]) -> Logger:
    """Log to TensorBoard event files in ``logs``.

    Raises:
        UserError: if tensorboard is not installed.
    """
    try:
        return TensorBoardLogger(path, name="", version="logs")
    except ModuleNotFoundError as error:
        raise UserError("logger=tensorboard needs its package; type: pip install mergestream[tensorboard]") from error


def wandb(path: Path, config: dict[str, Any], project: str = "mergestream", **options: Any) -> Logger:
    """Log to Weights & Biases: online if a key is configured, offline otherwise, without ever prompting.

    A run that continues after an interruption keeps its id, so that W&B shows one run.

    Args:
        path: the run directory; offline runs go to ``wandb`` below it.
        config: the resolved config, shown beside the curves.
        project: W&B project.
        options: further arguments of ``wandb.init`` (entity, group, tags, …).
    """
    import wandb as client

    if client.run is not None:  # left open by a job of the sweep that failed
        client.finish()
    try:
        online = client.login(prompt=False)
    except (client.errors.AuthenticationError, client.errors.CommError, client.errors.UsageError) as error:
        print(f"wandb: cannot log in ({error}); logging offline", file=sys.stderr)
        online = False
    options.setdefault("id", _wandb_id(path))
    mode = options.pop("mode", "online" if online else "offline")
    settings = client.Settings(silent=True, console="off")
    return WandbLogger(
        project=project, save_dir=path, name=_name(path), config=config, mode=mode, settings=settings, **options
    )


def close(logger: Logger | None) -> None:
    """Close the logger, so that the next job of a sweep does not log into this run."""
    if logger is not None:
        logger.finalize("success")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish()


def _name(path: Path) -> str:
    """Return the run directory below the root: dataset, stream, model, method and seed."""
    return "/".join(path.parts[-5:])


def _wandb_id(path: Path) -> str | None:
    """Return the id of the W&B run that earlier parts of this run log to; their folders end with it."""
    names = sorted(folder.name for folder in (path / "wandb").glob("*run-*"))
    found = [match[1] for name in names if (match := re.fullmatch(r"(?:offline-)?run-\d+_\d+-(.+)", name))]
    return found[0] if found else None
