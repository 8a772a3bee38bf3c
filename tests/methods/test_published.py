"""The published procedure as one plain loop, fed with the batches of a training: the same weights and Fishers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from helpers import command, config, noise
from safetensors.torch import load_file

from mergestream.compose.run import run_of
from mergestream.methods.ewc import EWC
from mergestream.models.tiny import tiny
from mergestream.training.learner import Learner

LR, DECAY, STRENGTH = 3e-4, 0.1, 1e6


@dataclass
class Recorded:
    """The batches of one task: of its training, and of the pass after it; with its head [C, D]."""

    training: list = field(default_factory=list)
    fisher: list = field(default_factory=list)
    head: torch.Tensor | None = None
    scale: float = 0.0
    classes: list = field(default_factory=list)


@pytest.fixture
def recorded(monkeypatch):
    """The tasks of the trainings in this test, filled while they run."""
    tasks: list[Recorded] = [Recorded()]
    step, consolidate = Learner.training_step, EWC.consolidate

    def recorded_step(self, batch, index):
        tasks[-1].training.append([x.clone() for x in batch[:2]])
        return step(self, batch, index)

    def recorded_consolidate(self, encoder, head, classes, batches):
        tasks[-1].fisher = [(x.clone(), y.clone()) for x, y in batches]
        tasks[-1].head, tasks[-1].classes = head.weight_CD[list(classes)].clone(), list(classes)
        tasks[-1].scale = float(head.scale)
        consolidate(self, encoder, head, classes, tasks[-1].fisher)
        tasks.append(Recorded())

    monkeypatch.setattr(Learner, "training_step", recorded_step)
    monkeypatch.setattr(EWC, "consolidate", recorded_consolidate)
    return tasks


def published(tasks: list[Recorded], cleared: bool):
    """Yield (weights, Fisher) after each task of fine-tuning with EWC as published."""
    encoder = tiny().encoder
    parameters = dict(encoder.named_parameters())
    fisher = {name: torch.zeros_like(p) for name, p in parameters.items()}
    anchor = None

    def loss_of(task: Recorded, images, targets):
        return F.cross_entropy(task.scale * F.normalize(encoder(images), dim=-1) @ task.head.T, targets)

    for task in tasks:
        optimizer = torch.optim.AdamW(encoder.parameters(), lr=LR, weight_decay=DECAY)
        total = len(task.training)
        warmup = round(0.1 * total)
        encoder.train()
        for step, (images, labels) in enumerate(task.training):
            cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
            optimizer.param_groups[0]["lr"] = LR * ((step + 1) / warmup if step < warmup else cosine)
            optimizer.zero_grad()
            loss = loss_of(task, images, torch.tensor([task.classes.index(int(y)) for y in labels]))
            if anchor is not None:
                moved = sum((fisher[name] * (p - anchor[name]) ** 2).sum() for name, p in parameters.items())
                loss = loss + STRENGTH * 0.5 * moved
            loss.backward()
            for name, p in parameters.items():
                if name.endswith("in_proj_bias"):  # of the keys; see `Learner.on_before_optimizer_step`
                    p.grad[len(p) // 3 : 2 * len(p) // 3] = 0
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
        encoder.eval()
        if cleared:
            optimizer.zero_grad()
        sums = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for images, _ in task.fisher:
            with torch.no_grad():
                predicted = (F.normalize(encoder(images), dim=-1) @ task.head.T).argmax(-1)
            loss_of(task, images, predicted).backward()  # on top of the gradients that are there
            for name, p in parameters.items():
                sums[name] += len(images) * p.grad**2
        size, samples = len(task.fisher[0][0]), sum(len(images) for images, _ in task.fisher)
        divisor = (samples // size + 1) * size
        fisher = {name: 0.5 * fisher[name] + 0.5 * sums[name] / divisor for name in fisher}
        anchor = {name: p.detach().clone() for name, p in parameters.items()}
        yield anchor, fisher


@pytest.mark.parametrize("estimator", ["reference", "reference_cleared"])
def test_ewc_is_the_published_one(recorded, tmp_path, estimator):
    words = [f"root={tmp_path}", *noise(), "epochs=2", "tasks=2", "method=ewc", f"method.estimator={estimator}"]
    words += [f"optimizer.lr={LR}", f"optimizer.weight_decay={DECAY}", f"method.strength={STRENGTH}"]
    outcome = command("train.py", *words)
    assert outcome.code == 0, outcome.err
    run, other = run_of(config("train", *words)), "reference" if "cleared" in estimator else "reference_cleared"
    tasks = [task for task in recorded if task.training]
    assert len(tasks) == 2
    ours = [load_file(run.encoder(t)) for t in range(2)]
    fishers = [load_file(run.method_state(t)) for t in range(2)]
    for t, (theta, fisher) in enumerate(published(tasks, cleared="cleared" in estimator)):
        for name, p in theta.items():
            torch.testing.assert_close(ours[t][name], p, rtol=0, atol=2e-5)
            torch.testing.assert_close(fishers[t][f"0/fisher/{name}"], fisher[name], rtol=1e-3, atol=1e-8)
    wrong = next(published(tasks, cleared=other == "reference_cleared"))[1]
    assert any(not torch.allclose(fishers[0][f"0/fisher/{n}"], f, rtol=1e-2, atol=1e-7) for n, f in wrong.items())
