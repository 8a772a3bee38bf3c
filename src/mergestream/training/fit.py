"""Trains one task with Lightning."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Sequence

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import SIGTERMException

from mergestream.compose.training import FitSettings
from mergestream.data.stream import TaskStream
from mergestream.runtime import processes
from mergestream.runtime.interrupt import Stopped
from mergestream.runtime.seeding import key
from mergestream.training.callbacks.checkpoint import Checkpointing, SafetensorsIO
from mergestream.training.environment import OneDeviceEach
from mergestream.training.learner import Learner


def fit_task(
    learner: Learner,
    stream: TaskStream,
    settings: FitSettings,
    device: torch.device,
    epochs: int,
    callbacks: Sequence[pl.Callback],
    saving: Checkpointing,
    marks: dict[str, str],
    logger: Logger | None,
) -> None:
    """Train the stream's current task, from its checkpoint if there is one.

    Args:
        learner: encoder, head, optimizer and method.
        stream: the data, at the task.
        settings: how to train.
        device: of this process.
        epochs: of this task.
        callbacks: called at every step.
        saving: saves the task in progress; called after the other callbacks.
        marks: metadata that the checkpoint must carry; see `Run.stamp`.
        logger: of the curves; None on all processes but the first.
    """
    size = processes.placement().size
    pl.seed_everything(key(settings.seed, stream.current) % 2**32, workers=True, verbose=False)
    trainer = pl.Trainer(  # a new one for each task: a second `fit` on one Trainer would train 0 steps
        accelerator="gpu" if device.type == "cuda" else "cpu",
        devices=1 if device.index is None else [device.index],
        num_nodes=size,
        # The only buffers are the frozen head, equal on all ranks; broadcasting them would wait on uneven shards.
        strategy=DDPStrategy(forward_sync_buffers=False) if size > 1 else "auto",
        plugins=[SafetensorsIO(marks), OneDeviceEach()],
        default_root_dir=saving.path.parent,  # where Lightning looks for a checkpoint of SLURM's
        max_epochs=epochs,
        precision=settings.precision,  # type: ignore[arg-type]
        gradient_clip_val=settings.gradient_clip,
        logger=logger or False,
        log_every_n_steps=min(10, len(stream.train_dataloader())),  # so that a short task leaves a row
        callbacks=[*callbacks, saving],
        use_distributed_sampler=False,  # the stream shards by rank itself
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with saving.signals.deferred():
        try:
            trainer.fit(learner, datamodule=stream, ckpt_path=saving.path if saving.path.exists() else None)
        except SIGTERMException:  # while Lightning got ready; it would end this process with exit code 0
            raise Stopped(signal.SIGTERM, saved=saving.signals.saved) from None


def silence_lightning() -> None:
    """Leave the screen to the progress display and the tables."""
    for name in ("pytorch_lightning", "lightning_fabric", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        r".*`srun` command is available.*",  # on every login node; `OneDeviceEach` says what started this process
        r".*does not have many workers.*",  # data.num_workers is the user's choice
        r".*have no `val_dataloader`.*|.*across ranks is zero.*",  # stream.validation=0
        r".*The number of training batches.*",  # small tasks are normal here
        r".*your dataloader is not resumable.*",  # the stream starts where the checkpoint says
        r".*Checkpoint directory.*|.*already configured with model summary.*|.*`isinstance\(treespec, LeafSpec\)`.*",
    ):
        warnings.filterwarnings("ignore", message=message)
