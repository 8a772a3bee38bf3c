"""Trainings with EWC and LwF: in two processes, with strength 0, resumed."""

from __future__ import annotations

import multiprocessing
import shutil
import threading
import time

import pytest
import torch
from helpers import apart, command, config, noise
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


@pytest.mark.parametrize("method", ["ewc", "ewc method.estimator=sample", "lwf"])
def test_two_processes_equal_one(method, fork_server, tmp_path):
    arguments = [
        f"root={tmp_path}",
        *noise(),
        "epochs=1",
        *f"method={method}".split(),
        "batch_size=53",  # and tasks have 54 images: a last batch of one leaves a process without a sample
        "accelerator=cpu",
    ]
    runs = {}
    for tag, devices in (("one", 1), ("two", 2)):
        outcome = command("train.py", *arguments, f"devices={devices}", f"tag={tag}")
        assert outcome.code == 0, outcome.err
        runs[tag] = run_of(config("train", f"root={tmp_path}", *noise(), *f"method={method}".split(), f"tag={tag}"))
    facts = {tag: read_json(run.metrics, "method")["method"] for tag, run in runs.items()}
    if "ewc" in method:
        samples = [task["train"] for task in runs["one"].stream()["tasks"]]
        estimator = "sample" if "sample" in method else "reference"
        expected = {"estimator": estimator, "consolidation": "ema", "fisher_samples": samples}
        assert facts == {"one": expected, "two": expected}
    for ours, theirs in zip(runs["one"].encoders(), runs["two"].encoders(), strict=True):
        assert apart(load_file(ours), load_file(theirs), load_file(runs["one"].base_file())) < 2e-3
    if method == "lwf":
        check_a_lost_process(runs["two"], [*arguments, "devices=2", "tag=two"])


def check_a_lost_process(run, arguments):
    """One of two processes is killed in the last task; both are started again, and end in the same bytes."""
    whole = run.encoder(2).read_bytes()
    shutil.rmtree(run.task(2))
    run.metrics.unlink()

    def kill_when_saved() -> None:
        while not run.checkpoint(2).exists():
            time.sleep(0.02)
        multiprocessing.active_children()[1].kill()

    killer = threading.Thread(target=kill_when_saved, daemon=True)
    killer.start()
    outcome = command("train.py", *arguments, "checkpoint.every_minutes=0")
    assert outcome.code == 0, outcome.err
    assert "was ended by SIGKILL; starting all 2 again (1 of 3)" in outcome.err
    assert run.encoder(2).read_bytes() == whole
