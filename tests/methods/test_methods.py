"""Trainings with EWC and LwF: in two processes, with strength 0, resumed."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers import apart, command, config, noise
from lost_process import train_and_lose_a_process
from safetensors.torch import load_file

from mergestream.compose.run import run_of
from mergestream.methods.ewc import ewc_penalty
from mergestream.runtime.files import read_json


def train(root, *words):
    """Train on noise for an epoch, and return the run."""
    outcome = command("train.py", f"root={root}", *noise(), "epochs=1", *words)
    assert outcome.code == 0, outcome.err
    return run_of(config("train", f"root={root}", *noise(), *words))


@pytest.fixture(scope="module")
def sequential(tmp_path_factory):
    """A run of plain sequential fine-tuning."""
    return train(tmp_path_factory.mktemp("sequential"), "method=seq")


@pytest.mark.parametrize("method", ["ewc", "lwf"])
def test_strength_zero_is_sequential_fine_tuning(method, sequential, tmp_path):
    run = train(tmp_path, f"method={method}", "method.strength=0")
    for ours, theirs in zip(run.encoders(), sequential.encoders(), strict=True):
        ours, theirs = load_file(ours), load_file(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_ewc_changes_the_weights_that_the_first_task_needs_less(sequential, tmp_path):
    run = train(tmp_path, "method=ewc")
    state = load_file(run.method_state(0))
    fisher = {name: state[f"0/fisher/{name}"] for name in load_file(run.encoder(0))}

    def penalty(run):
        return ewc_penalty(load_file(run.encoder(2)), fisher, load_file(run.encoder(0))).item()

    assert penalty(run) < 0.7 * penalty(sequential)


def test_error_for_a_resumed_run_whose_method_state_is_missing(tmp_path):
    run = train(tmp_path, "method=ewc")
    shutil.rmtree(run.task(2))
    run.metrics.unlink()
    run.method_state(1).unlink()
    outcome = command("train.py", f"root={tmp_path}", *noise(), "epochs=1", "method=ewc")
    assert outcome.code == 1
    assert f"{run.method_state(1)} is missing" in outcome.err
    assert "repair=true" in outcome.err


# Tasks of 54 images: the last batch has one, and leaves one of two processes without a sample.
UNEVEN = ("batch_size=53", "accelerator=cpu")


@pytest.mark.parametrize("words", ["method=ewc", "method=ewc method.estimator=sample", "method=lwf"])
def test_two_processes_train_as_one_does(words, tmp_path):
    one, two = (train(tmp_path, *words.split(), *UNEVEN, f"devices={n}", f"tag={n}") for n in (1, 2))
    for ours, theirs in zip(one.encoders(), two.encoders(), strict=True):
        assert apart(load_file(ours), load_file(theirs), load_file(one.base_file())) < 2e-3
    facts = [read_json(run.metrics, "method")["method"] for run in (one, two)]
    assert facts[0] == facts[1]
    if "ewc" in words:
        assert facts[0] == {
            "estimator": "sample" if "sample" in words else "reference",
            "consolidation": "ema",
            "fisher_samples": [task["train"] for task in one.stream()["tasks"]],
        }


def test_run_that_loses_a_process_ends_in_the_same_bytes(tmp_path, monkeypatch):
    words = [*noise(), "epochs=1", "tasks=2", "method=lwf", *UNEVEN, "devices=2", "checkpoint.every_minutes=0"]
    outcome = command("train.py", f"root={tmp_path}", *words, "tag=whole")
    assert outcome.code == 0, outcome.err
    monkeypatch.setattr("mergestream.cli.train._train_here", train_and_lose_a_process)
    outcome = command("train.py", f"root={tmp_path}", *words, "tag=lost")
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("process 1 of 2 was ended by SIGKILL; starting all 2 again (1 of 3)") == 1
    whole, lost = (run_of(config("train", f"root={tmp_path}", *words, f"tag={t}")) for t in ("whole", "lost"))
    for ours, theirs in zip(whole.encoders(), lost.encoders(), strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
