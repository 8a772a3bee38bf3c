"""Learning without forgetting: distil the previous encoder's answers about past classes (Li & Hoiem 2016)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from mergestream.methods.method import Batches, Method
from mergestream.models.clip import TextHead
from mergestream.runtime.rules import require_choice, require_number

EPSILON = 1e-5  # keeps the logarithm of the student finite, as published


def distillation_loss(student_logits: Tensor, teacher_logits: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Return the batch mean of − Σ_c q_c log p_c, a scalar.

    q and p are the distributions of teacher and student, softened by the temperature:
    softened(z)_c = softmax(z)_c^{1/T} / Σ softmax(z)^{1/T}. ε/C is added to p, which is renormalised; there is no
    factor T². Li & Hoiem 2016, Eq. 3, in the published form of Marczak et al. 2024.

    Args:
        student_logits, teacher_logits: [B, C].
        temperature: T.
    """
    return _per_sample(student_logits, teacher_logits, temperature).mean()


def _per_sample(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    # softmax(z)^{1/T} renormalised is softmax(z / T).
    teacher = torch.softmax(teacher_logits / temperature, -1)
    student = torch.softmax(student_logits / temperature, -1) + EPSILON / student_logits.shape[-1]
    student = student / student.sum(-1, keepdim=True)
    return -(teacher * student.log()).sum(-1)


class LwF(Method):
    """Sequential fine-tuning with the loss plus ``strength`` · `distillation_loss` on the past classes.

    Args:
        id: name of the method in the run directory.
        strength: λ, at least 0.
        temperature: T, positive.
        softmax: ``union`` takes one softmax over all past classes (published), ``per_task`` sums a loss per past task.

    Raises:
        UserError: if a value is out of range.
    """

    weighs_samples = True

    def __init__(self, id: str = "lwf", strength: float = 0.3, temperature: float = 2.0, softmax: str = "union"):
        require_number("method.strength", strength, "at least 0", lambda x: x >= 0)
        require_number("method.temperature", temperature, "positive", lambda x: x >= 1e-6)
        require_choice("method.softmax", softmax, ("union", "per_task"))
        super().__init__(id, start="previous", data="task")
        self.strength, self.temperature, self.softmax = float(strength), float(temperature), softmax
        # Kept on the callback and not on the module, so that DDP and the saved encoder do not see them.
        self.teacher: nn.Module | None = None
        self.past: list[int] = []  # classes of past tasks without duplicates: in some streams, tasks share classes
        self.heads: list[TextHead] = []

    def penalty(self, encoder: nn.Module, images: Tensor, features: Tensor, weights: Tensor) -> Tensor | None:
        """Return λ · distillation loss, as the weighted mean over the global batch."""
        if self.teacher is None:
            return None
        with torch.no_grad():
            teacher_features = self.teacher.to(images.device)(images)
        heads = [head.to(images.device) for head in self.heads]
        losses = [_per_sample(head(features), head(teacher_features), self.temperature) for head in heads]
        return self.strength * (weights * torch.stack(losses).sum(0)).sum()

    def consolidate(self, encoder: nn.Module, head: TextHead, classes: Sequence[int], batches: Batches) -> None:
        """Make the encoder the teacher, and add the classes of the task to the past classes."""
        self.teacher = deepcopy(encoder).eval().requires_grad_(False)
        if self.softmax == "per_task":
            self.heads.append(head.restrict(classes))
        else:
            self.past = list(dict.fromkeys([*self.past, *classes]))
            self.heads = [head.restrict(self.past)]

    def restore(self, state: Mapping[str, Tensor], encoder: nn.Module, head: TextHead, classes: Sequence[int]) -> None:
        """Make the saved encoder the teacher, as `consolidate` does."""
        self.consolidate(encoder, head, classes, ())
