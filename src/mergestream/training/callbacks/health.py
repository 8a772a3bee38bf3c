"""Watches loss and gradients: NaN and infinity stop the training, spikes are counted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
from torch import Tensor

from mergestream.runtime.errors import UserError

EVERY = 50  # steps between two checks, each of which waits for the device
DECAY = 0.98  # of the exponential mean that a step is compared with
SPIKE = 5.0  # a spike exceeds the mean by this factor
SETTLING = 20  # the first steps of a task are no spikes


class Health(pl.Callback):
    """Checks the loss and the gradient norm of every step, 50 steps at a time, so that single steps do not wait.

    A spike is a step, after the first 20 of a task, whose value is more than 5 times the exponential mean (decay 0.98)
    of the steps before it. Both values belong to the global batch; the gradient norm is taken before clipping.

    Args:
        task: the label for messages, such as "task 2 of 5".
    """

    def __init__(self, task: str):
        self.task = task
        self.pending: list[tuple[int, int, Tensor, Tensor]] = []
        self.scaled = False  # whether a scaler skips steps with an infinite gradient, as with 16-mixed
        self.steps = 0
        self.means = {"loss": 0.0, "gradient_norm": 0.0}
        self.spikes = {"loss": 0, "gradient_norm": 0}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "means": dict(self.means), "spikes": dict(self.spikes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.means, self.spikes = state["steps"], dict(state["means"]), dict(state["spikes"])

    def on_train_batch_end(self, trainer: pl.Trainer, learner: Any, outputs: Any, *_: Any) -> None:
        self.pending.append((trainer.current_epoch, trainer.global_step, outputs["loss"], learner.gradient_norm))
        self.scaled = trainer.precision == "16-mixed"
        if len(self.pending) == EVERY:
            self.check()

    def on_train_end(self, trainer: pl.Trainer, learner: pl.LightningModule) -> None:
        self.check(learner)

    def check(self, learner: pl.LightningModule | None = None) -> None:
        """Check the steps since the last check, and the weights of `learner` before they are saved.

        Args:
            learner: the module whose weights are checked; None checks the steps alone.

        Raises:
            UserError: if a loss, a gradient or a weight is not finite.
        """
        if not self.pending:
            return
        last = self.pending[-1]
        self._check_steps()
        if learner is not None and not all(bool(p.isfinite().all()) for p in learner.parameters()):
            raise UserError(_message("weights", "not", f"{self.task}, epoch {last[0] + 1}, step {last[1]}"))

    def _check_steps(self) -> None:
        values = torch.stack([torch.stack([loss, norm.to(loss)]) for _, _, loss, norm in self.pending]).double()
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(values)  # NaN and infinity survive the sum, so that all processes stop together
            values /= dist.get_world_size()
        for (epoch, step, _, _), row in zip(self.pending, values.tolist(), strict=True):
            for name, value in zip(self.means, row, strict=True):
                if not math.isfinite(value):
                    if name == "gradient_norm" and self.scaled:
                        continue
                    where = f"{self.task}, epoch {epoch + 1}, step {step}"
                    raise UserError(_message(name.replace("_", " "), value, where))
                if self.steps >= SETTLING and value > SPIKE * self.means[name]:
                    self.spikes[name] += 1
                self.means[name] = value if self.means[name] == 0 else DECAY * self.means[name] + (1 - DECAY) * value
            self.steps += 1
        self.pending.clear()


def require_finite(tensors: Mapping[str, Tensor], what: str, task: str) -> None:
    """Check tensors before they are saved.

    Args:
        tensors: by name.
        what: what they are, for the message.
        task: the label for the message, such as "task 2 of 5".

    Raises:
        UserError: if a value is NaN or infinite.
    """
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise UserError(_message(what, f"not in {name}", f"the end of {task}"))


def _message(what: str, value: float | str, where: str) -> str:
    it = "they are" if what == "weights" else "it is"
    return (
        f"the {what.removeprefix('the ')} must be finite; {it} {value} at {where}. Usual causes are a high learning "
        "rate (optimizer.lr), 16-bit numbers (write precision=32-true), and images or weights with NaN (data.root, "
        "model.pretrained). Earlier saves are kept."
    )
