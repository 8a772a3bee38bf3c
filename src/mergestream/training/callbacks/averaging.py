"""Averages the weights along the training of a task."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mergestream.compose.training import AveragingSettings


class Averaging(pl.Callback):
    """Keeps an average of the weights of a task, taken every few steps.

    ``swa`` is their mean (Izmailov et al. 2018); ``ema`` is m ← decay · m + (1 − decay) · θ, which starts at the first
    weights that are taken. Buffers, such as the running statistics of batch normalisation, are the latest ones.

    Lightning's callback of the same purpose leaves the weights as they were if a run is interrupted after the last
    step, so torch's model is used directly.

    Args:
        settings: which average, and how often weights are taken.
        encoder: the image tower that is trained.
    """

    def __init__(self, settings: AveragingSettings, encoder: nn.Module):
        self.every, self.encoder = settings.every, encoder
        average = get_ema_multi_avg_fn(settings.decay) if settings.kind == "ema" else None
        self.model = AveragedModel(encoder, multi_avg_fn=average)

    def on_train_batch_end(self, trainer: pl.Trainer, learner: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            self.model.to(learner.device).update_parameters(self.encoder)

    def state_dict(self) -> dict[str, Any]:
        return dict(self.model.state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.model.load_state_dict(state_dict)

    def adopt(self) -> None:
        """Give the average to the encoder."""
        self.encoder.load_state_dict(self.model.module.state_dict())
