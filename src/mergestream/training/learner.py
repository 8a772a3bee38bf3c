"""The LightningModule that fine-tunes the image tower on one task."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from mergestream.methods.method import Method
from mergestream.models.clip import TextHead
from mergestream.runtime.seeding import key, seed_all
from mergestream.training.accumulate import accumulated
from mergestream.training.schedule import warmup_cosine


class Learner(pl.LightningModule):
    """The image tower and a frozen text head over the classes of the task. Only the tower has parameters.

    Args:
        encoder: the image tower, trained in place.
        head: text head over all classes.
        classes: class ids of the task; the training logits are restricted to them.
        optimizer: parameters → optimizer.
        warmup: warm-up steps if an integer, a fraction of all steps if a float.
        method: adds its penalty to the loss.
        first_step: optimizer steps before this task, which give the log of a stream one x axis.
        parts: key of the random draws of a step, besides the epoch and the batch.
        encode: calls the encoder in training steps, where it is compiled; None is the encoder itself.
        accumulate: parts into which a batch is divided, one in memory at a time.
    """

    columns: Tensor
    gradient_norm: Tensor  # of the last step, before clipping

    def __init__(
        self,
        encoder: nn.Module,
        head: TextHead,
        classes: Sequence[int],
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        warmup: int | float,
        method: Method,
        first_step: int = 0,
        parts: tuple[int | str, ...] = (),
        encode: Callable[[Tensor], Tensor] | None = None,
        accumulate: int = 1,
    ):
        super().__init__()
        self.encoder = encoder
        self.head = head.restrict(classes)
        self.make_optimizer, self.warmup, self.first_step = optimizer, warmup, first_step
        self.method, self.parts, self.accumulate = method, parts, accumulate
        # In a function, since a module would be registered here with the parameters of the encoder, a second time.
        self.encode = lambda images: (self.encoder if encode is None else encode)(images)
        # Column of each class id in the restricted head; -1 marks the classes of other tasks.
        columns = torch.full((len(head.weight_CD),), -1)
        columns[list(classes)] = torch.arange(len(classes))
        self.register_buffer("columns", columns, persistent=False)
        self.validation_accuracy = MeanMetric()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes of the task] of images [B, 3, H, W]."""
        return self.head(self.encoder(images))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed every generator for this step, so that dropout draws the same after an interruption."""
        seed_all(key(*self.parts, "step", self.trainer.current_epoch, batch_idx, self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the weighted cross-entropy of a batch (images, labels, weights), plus the method's penalty."""
        if self.accumulate == 1:
            loss, accuracy = self._loss(*batch)
        else:
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            parts = zip(*(values.tensor_split(self.accumulate) for values in batch), strict=True)
            scale = scaler.scale if scaler is not None else None
            loss, accuracy = accumulated(self._loss, [p for p in parts if len(p[0])], self.encoder.parameters(), scale)
        self._log({"loss": loss, "accuracy": accuracy, "lr": self.trainer.optimizers[0].param_groups[0]["lr"]})
        return loss

    def _loss(self, images: Tensor, labels: Tensor, weights: Tensor, first: bool = True) -> tuple[Tensor, Tensor]:
        """Return the loss and the accuracy of a batch or of a part of it; `first` is false for its later parts."""
        features = self.encode(images)
        logits, targets = self.head(features), self.columns[labels]
        # The sampler's weights make the ranks' average the mean over the global batch, even where shards differ.
        loss = (weights * F.cross_entropy(logits, targets, reduction="none")).sum()
        if first or self.method.weighs_samples:
            penalty = self.method.penalty(self.encoder, images, features, weights)
            loss = loss if penalty is None else loss + penalty
        return loss, (weights * (logits.argmax(-1) == targets)).sum()

    def validation_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        """Log the accuracy of a batch among the classes of the task."""
        images, labels, _ = batch
        self.validation_accuracy((self(images).argmax(-1) == self.columns[labels]).float())
        self._log({"validation_accuracy": self.validation_accuracy}, on_epoch=True, on_step=False, sync_dist=True)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Zero the gradient of the attention's key bias, which is zero in exact arithmetic.

        A key bias adds the same number to all logits of a query, which softmax ignores. Its computed gradient is
        rounding noise, and Adam would scale that up to full steps: weights without effect would differ between one
        process and two by more than all others together, and would enter the task vectors.
        """
        for module in self.encoder.modules():
            bias = module.in_proj_bias if isinstance(module, nn.MultiheadAttention) else None
            if bias is not None and bias.grad is not None:
                bias.grad.chunk(3)[1].zero_()  # query, key, value

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        """Clip the gradient norm as Lightning would, and keep its value before clipping."""
        self.gradient_norm = nn.utils.clip_grad_norm_(self.encoder.parameters(), float(gradient_clip_val))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Return the optimizer and its schedule, which both start anew with every task."""
        optimizer = self.make_optimizer([p for p in self.encoder.parameters() if p.requires_grad])
        total = int(self.trainer.estimated_stepping_batches)
        warmup = self.warmup if isinstance(self.warmup, int) else round(self.warmup * total)
        schedule = LambdaLR(
            optimizer, lambda step: warmup_cosine(step, base_lr=1.0, warmup_steps=warmup, total_steps=total)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _log(self, values: dict[str, Any], **options: Any) -> None:
        """Log numbers and tensors. Numbers are filled in on the device; to copy them there would wait for it."""
        values = {**values, "step": self.first_step + self.global_step}
        filled = {
            k: v if not isinstance(v, int | float) else torch.full((), float(v), device=self.device)
            for k, v in values.items()
        }
        self.log_dict(filled, **options)
