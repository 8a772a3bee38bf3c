"""method.average: the encoder of a task is an average of the weights along its training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import command, config, cut_off_after, noise
from safetensors.torch import load_file

from mergestream.compose.run import run_of
from mergestream.runs.directory import Run
from mergestream.runs.identity import config_hash
from mergestream.training.callbacks.averaging import Averaging
from mergestream.training.callbacks.checkpoint import Checkpointing

WORDS = (*noise(), "epochs=2", "tasks=2", "checkpoint.every_minutes=0")


def train(root: Path, *words: str) -> Run:
    outcome = command("train.py", f"root={root}", *WORDS, *words)
    assert outcome.code == 0, outcome.err
    return run_of(config("train", f"root={root}", *WORDS, *words))


@pytest.fixture
def path(monkeypatch):
    """The weights after each step of each training in this test, in float64."""
    taken: list[dict[str, torch.Tensor]] = []
    original = Averaging.on_train_batch_end

    def recorded(self, trainer, learner, *arguments):
        taken.append({name: p.detach().double().clone() for name, p in self.encoder.named_parameters()})
        original(self, trainer, learner, *arguments)

    monkeypatch.setattr(Averaging, "on_train_batch_end", recorded)
    return taken


@pytest.mark.parametrize(
    ("words", "average"),
    [
        (("method.average=swa",), lambda w: sum(w) / len(w)),
        (("method.average=swa", "method.average_every=3"), lambda w: sum(w[2::3]) / len(w[2::3])),
        (("method.average=ema", "method.average_decay=0.8", "method.average_every=2"), None),
    ],
)
def test_the_encoder_is_the_average_of_the_weights(path, tmp_path, words, average):
    def moving(weights):
        mean = weights[1]
        for theta in weights[3::2]:
            mean = 0.8 * mean + 0.2 * theta
        return mean

    run = train(tmp_path, *words)
    steps = len(path) // 2
    assert steps > 8
    for t in range(2):
        for name, found in load_file(run.encoder(t)).items():
            expected = (average or moving)([weights[name] for weights in path[t * steps : (t + 1) * steps]])
            torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("step", [5, 12, 13])  # within a task, in its last step, in the next task
def test_a_training_that_is_cut_off_ends_in_the_same_bytes(tmp_path, step):
    words = ("method=ewc", "method.average=ema", "method.average_decay=0.8")
    whole = train(tmp_path / "whole", *words)
    with cut_off_after(Checkpointing, "_save_if", calls=step):
        train(tmp_path / "cut", *words)
    run = train(tmp_path / "cut", *words)
    for t in range(2):
        assert run.encoder(t).read_bytes() == whole.encoder(t).read_bytes()
        assert run.method_state(t).read_bytes() == whole.method_state(t).read_bytes()


def test_a_run_without_it_keeps_its_config_hash():
    now = {"method": {"id": "seq", "average": None, "average_every": 1, "average_decay": 0.99}}
    assert config_hash(now) == config_hash({"method": {"id": "seq"}})
    assert config_hash({"method": {**now["method"], "average": "swa"}}) != config_hash(now)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("method.average=mean",), "method.average must be one of ema, swa"),
        (("method.average=ema", "method.average_decay=1"), "method.average_decay must be a number, in [0, 1)"),
        (("method.average=ema", "method.average_every=0"), "method.average_every must be a whole number, 1 or more"),
        (("method.average=ema", "method.average_every=13"), "at most the steps of the shortest task, 12; got"),
    ],
)
def test_bad_input(tmp_path, words, expected):
    outcome = command("train.py", f"root={tmp_path}", *WORDS, *words)
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert expected in line
    assert not list(tmp_path.rglob("*.safetensors"))
