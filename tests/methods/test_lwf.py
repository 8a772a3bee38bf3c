"""Learning without forgetting: distillation loss, teacher and past classes."""

from __future__ import annotations

import pytest
import torch
from helpers import golden
from torch import nn

from mergestream.methods.lwf import LwF, distillation_loss
from mergestream.models.clip import TextHead


@pytest.mark.parametrize("temperature", [1, 2])
def test_distillation_loss_equals_the_published_one(temperature):
    group = golden("lwf.safetensors")[""]
    loss = distillation_loss(group["student_logits"], group["teacher_logits"], temperature=temperature)
    assert loss.item() == pytest.approx(group[f"loss_T{temperature}"].item(), rel=1e-6)


def test_teacher_is_a_frozen_copy_of_the_encoder():
    torch.manual_seed(0)
    encoder, head = nn.Linear(4, 3), TextHead(nn.functional.normalize(torch.randn(5, 3)), 2.0)
    method = LwF()
    images, weights = torch.randn(6, 4), torch.full((6,), 1 / 6)
    assert method.penalty(encoder, images, encoder(images), weights) is None
    method.consolidate(encoder, head, [0, 2], ())
    before = {name: p.clone() for name, p in method.teacher.named_parameters()}
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    for _ in range(3):
        features = encoder(images)
        (features.square().mean() + method.penalty(encoder, images, features, weights)).backward()
        optimizer.step()
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in method.teacher.named_parameters())
    assert not torch.equal(encoder.weight, method.teacher.weight)
    features = encoder(images)
    expected = 0.3 * distillation_loss(head.restrict([0, 2])(features), head.restrict([0, 2])(method.teacher(images)))
    torch.testing.assert_close(method.penalty(encoder, images, features, weights), expected)


@pytest.mark.parametrize("softmax", ["union", "per_task"])
def test_shared_classes_count_once_with_union_and_once_per_task_with_per_task(softmax):
    torch.manual_seed(0)
    encoder, head = nn.Linear(4, 3), TextHead(nn.functional.normalize(torch.randn(5, 3)), 2.0)
    images, weights = torch.randn(6, 4), torch.full((6,), 1 / 6)
    once, twice = LwF(softmax=softmax), LwF(softmax=softmax)
    once.consolidate(encoder, head, [0, 1, 2], ())
    for _ in range(2):
        twice.consolidate(encoder, head, [0, 1, 2], ())
    penalties = [method.penalty(encoder, images, encoder(images), weights).item() for method in (once, twice)]
    assert penalties[1] == pytest.approx(penalties[0] * (1 if softmax == "union" else 2), rel=1e-6)
