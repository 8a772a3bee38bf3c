"""A training step never waits for its device: it reads no number from a tensor."""

from __future__ import annotations

import pytest
from helpers import command, noise
from torch.utils._python_dispatch import TorchDispatchMode

from mergestream.training.callbacks.checkpoint import Checkpointing
from mergestream.training.learner import Learner

# Operations for which a GPU would have to finish first: reading a number, shapes that depend on numbers, and
# torch.tensor(…), which is copied to the device while the process waits.
WAITING = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.lift_fresh")


class Reading(TorchDispatchMode):
    """Lists the operations of each step that would wait."""

    def __init__(self):
        super().__init__()
        self.steps: list[list[str]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(WAITING):
            self.steps[-1].append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("words", [["method=lwf"], ["method=ewc", "accumulate=2"]])
def test_steps_do_not_wait(tmp_path, monkeypatch, words):
    reading, begin, end = Reading(), Learner.on_train_batch_start, Checkpointing.on_train_batch_end

    def first(self, *arguments):
        reading.steps.append([])
        reading.__enter__()
        begin(self, *arguments)

    def last(self, *arguments):  # of all callbacks
        end(self, *arguments)
        reading.__exit__(None, None, None)

    monkeypatch.setattr(Learner, "on_train_batch_start", first)
    monkeypatch.setattr(Checkpointing, "on_train_batch_end", last)
    # AdamW counts its steps in tensors on the CPU, which it reads without waiting for a GPU.
    arguments = [f"root={tmp_path}", *noise(), "epochs=1", "tasks=2", "optimizer._target_=torch.optim.SGD", *words]
    outcome = command("train.py", *arguments)
    assert outcome.code == 0, outcome.err
    assert len(reading.steps) == 2 * 6
    for number, found in enumerate(reading.steps):
        if number % 6:  # in the first step of a task, Lightning makes the sums behind its log
            assert not found
