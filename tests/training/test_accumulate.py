"""A batch in parts: the same loss and gradient as in one piece."""

from __future__ import annotations

import pytest
import torch
from helpers import config

from mergestream.compose.training import training_settings
from mergestream.methods.ewc import EWC
from mergestream.methods.lwf import LwF
from mergestream.methods.method import Method
from mergestream.models import tiny
from mergestream.models.clip import TextHead
from mergestream.runtime.errors import UserError
from mergestream.training.accumulate import accumulated
from mergestream.training.arithmetic import activation_checkpointing
from mergestream.training.learner import Learner


class Trainer:
    """What a training step asks of Lightning's."""

    optimizers = (torch.optim.SGD([torch.zeros(1)], lr=1.0),)
    precision_plugin = None


def learner(accumulate: int, method: Method, encoder: torch.nn.Module, monkeypatch) -> Learner:
    head = TextHead(torch.nn.functional.normalize(torch.randn(5, 4, generator=torch.manual_seed(1)).double()), 3.0)
    made = Learner(encoder, head, [1, 3, 4], torch.optim.AdamW, 0.1, method, accumulate=accumulate)
    monkeypatch.setattr(made, "_log", lambda *_, **__: None)
    monkeypatch.setattr(Learner, "trainer", property(lambda _: Trainer))
    return made


def method_of(name: str, encoder: torch.nn.Module) -> Method:
    """A method that has learnt a task, so that it adds its penalty."""
    if name == "ewc":
        method: Method = EWC(strength=10.0)
        ones = {n: torch.rand_like(p) for n, p in encoder.named_parameters()}
        method.terms = [(ones, {n: p.detach() + 1 for n, p in encoder.named_parameters()})]
        return method
    if name == "lwf":
        method = LwF(strength=2.0)
        other = torch.nn.Linear(6, 4).double()
        method.consolidate(other, TextHead(torch.randn(5, 4).double(), 3.0), [0, 2], ())
        return method
    return Method("seq")


@pytest.mark.parametrize("name", ["seq", "ewc", "lwf"])
@pytest.mark.parametrize("parts", [2, 3, 7, 10])  # of 7 samples
def test_parts_give_the_gradient_of_the_batch(name, parts, monkeypatch):
    torch.manual_seed(0)
    encoder = torch.nn.Linear(6, 4).double()
    encoder.register_parameter("unused", torch.nn.Parameter(torch.ones(2).double()))
    method = method_of(name, encoder)
    weights = torch.rand(7).double()
    batch = (torch.randn(7, 6).double(), torch.tensor([1, 3, 4, 4, 1, 3, 3]), weights / weights.sum())
    found = []
    for accumulate in (1, parts):
        encoder.zero_grad()
        loss = learner(accumulate, method, encoder, monkeypatch).training_step(batch, 0)
        loss.backward()
        found.append((loss.item(), encoder.weight.grad.clone(), encoder.bias.grad.clone(), encoder.unused.grad))
    (loss, weight, bias, unused), (loss_2, weight_2, bias_2, unused_2) = found
    assert loss_2 == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(weight_2, weight, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(bias_2, bias, rtol=1e-10, atol=1e-14)
    assert (unused is None) == (unused_2 is None)  # AdamW would shrink a weight with a gradient of zero


def test_a_scaled_loss_gives_a_scaled_gradient():
    """As with 16-mixed, whose scaler divides the gradients afterwards."""
    weight = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
    scale = torch.tensor(1024.0)
    parts = [(torch.tensor([1.0, 0.0]),), (torch.tensor([0.0, 4.0]),)]

    def loss_of(x, first):
        assert torch.is_grad_enabled()
        return (weight * x).sum(), x.sum()

    loss, other = accumulated(loss_of, parts, [weight], lambda value: value * scale)
    assert (loss.item(), other.item()) == (14.0, 5.0)
    (loss * scale).backward()
    assert weight.grad.tolist() == [1024.0, 4096.0]


def test_activations_computed_again_change_no_bit():
    encoder = tiny.tiny().encoder
    images, found = torch.randn(4, 3, 32, 32, generator=torch.manual_seed(0)), []
    for wanted in (False, True):
        encoder.zero_grad()
        with activation_checkpointing(encoder, wanted):
            encoder(images).square().sum().backward()
        found.append([p.grad.clone() for p in encoder.parameters()])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))
    assert not encoder.transformer.grad_checkpointing  # off again


def test_a_method_that_does_not_say_how_its_penalty_counts_is_refused(monkeypatch):
    monkeypatch.setattr(EWC, "weighs_samples", None)
    with pytest.raises(UserError, match="accumulate needs a method whose class sets weighs_samples.*EWC does not"):
        training_settings(config("train", "method=ewc", "accumulate=2"))
    assert training_settings(config("train", "method=ewc")).fit.accumulate == 1
    assert training_settings(config("train", "method=seq", "accumulate=2")).fit.accumulate == 2
