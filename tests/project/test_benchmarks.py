"""The scripts in benchmarks/ still fit the code that they measure."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from types import SimpleNamespace

import pytest
from helpers import ROOT, noise

from mergestream.training.callbacks.checkpoint import Checkpointing

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_says_what_it_measures(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stop:
        load(path).main()
    assert stop.value.code == 0
    assert f"benchmarks/{path.name}" in capsys.readouterr().out


def test_the_benchmark_of_checkpoints_times_every_decision_to_save(monkeypatch):
    decisions = []

    def save_if(self, trainer, learner, due):
        decisions.append((self.task, due))

    monkeypatch.setattr(Checkpointing, "_save_if", save_if)
    module = load(ROOT / "benchmarks/checkpoint.py")
    ticks = itertools.count()
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    everything, inside = module.seconds(*noise(), "epochs=1")
    tasks = [f"task {task} of 3" for task in (1, 2, 3)]
    assert [(task, [due for t, due in decisions if t == task]) for task in tasks] == [
        (task, [False, False, False, True]) for task in tasks
    ]  # 4 batches: nothing is due within the epoch, and its end is
    assert inside == len(decisions)  # one tick from before to after each of them
    assert everything == 2 * len(decisions) + 1
    assert Checkpointing._save_if is save_if
