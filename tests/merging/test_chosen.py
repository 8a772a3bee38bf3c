"""Which encoder of a run is meant, and what is wrong with it if it cannot be used."""

from __future__ import annotations

import os
import re

import pytest
import torch
from helpers import command, config
from omegaconf import OmegaConf
from safetensors.torch import load_file

from mergestream.compose.encoder import encoder_settings
from mergestream.merging.chosen import chosen_encoder
from mergestream.runtime import files
from mergestream.runtime.errors import UserError


@pytest.fixture
def choose(root, words):
    """Choose an encoder of the finished runs by overrides."""

    def run(*overrides):
        cfg = config("predict", f"root={root}", *words, *overrides)
        OmegaConf.resolve(cfg)
        return chosen_encoder(encoder_settings(cfg, ("images",)))

    return run


def test_the_encoder_of_a_task_and_the_base(choose, root, run_at):
    run = run_at(root)
    for task in (1, 3):
        chosen, path = choose(f"encoder={task}"), run.encoder(task - 1)
        assert (chosen.path, chosen.seen, chosen.sha256) == (path, task, files.verify(path))
        assert all(torch.equal(chosen.weights()[name], tensor) for name, tensor in load_file(path).items())
    base = choose("encoder=base")
    assert (base.path, base.seen) == (run.base_file(), 0)
    joint = choose("method=joint", "encoder=1")
    assert joint.seen == 3
    assert choose("encoder=last") == choose("encoder=3")
    assert choose("method=joint", "encoder=last") == joint
    assert choose("method=zeroshot", "encoder=last") == choose("method=zeroshot", "encoder=base")


def test_the_merge_that_the_values_name(choose, root, words, run_at):
    with pytest.raises(UserError, match=r"merges/magmax-0.5 does not exist .* Type: .*merge.* dataset=folder tasks=3"):
        choose()
    outcome = command("merge.py", f"root={root}", *words, "lambda=[0.5,0.25]")
    assert outcome.code == 0, outcome.err
    folder = run_at(root).path / "merges"
    chosen = choose("lambda=0.25")
    assert (chosen.path, chosen.seen) == (folder / "magmax-0.25/merged.safetensors", 3)
    assert chosen.metrics["merge"]["scale"] == 0.25
    assert choose().name == "magmax-0.5"

    merged = folder / "magmax-0.5/merged.safetensors"
    for path in (merged, merged.with_name("metrics.json")):
        os.utime(path, ns=(0, 0))
    with pytest.raises(UserError, match=r"magmax-0.5 is of earlier ones. Type: "):
        choose()
    content = bytearray(merged.read_bytes())
    content[-1] ^= 1
    merged.write_bytes(content)
    with pytest.raises(UserError, match=r"merged.safetensors was altered .* Type: "):
        choose()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["encoder=4"], "encoder must be merge, base, last, or a task of the run, from 1 to 3; got encoder=4"),
        (["encoder=0"], "the number of a task, 1 or more; got encoder=0"),
        (["encoder=first"], "encoder must be merge (of all tasks), base (θ₀), last (of the last task), or the number"),
        (["lambda=[0.1,0.2]"], "lambda must be one number, select, or null for the strategy's own, to name a merge"),
        (["method=zeroshot"], "encoder=merge needs trained encoders; method=zeroshot trains none. Write encoder=base"),
        (["seed=6"], "a finished run is needed;"),
        (["optimizer.lr=1"], "a run directory holds one config;"),
    ],
)
def test_what_cannot_be_chosen(choose, overrides, message, monkeypatch):
    monkeypatch.setattr("mergestream.compose.run.COMPARED", ("dataset", "optimizer"))  # as if it were typed
    with pytest.raises(UserError, match=re.escape(message)):
        choose(*overrides)


def test_an_encoder_that_was_dropped_or_altered(choose, root, run_at):
    run = run_at(root)
    path = run.encoder(1)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match=r"task-01/encoder.safetensors was altered .* To repair it, type: "):
        choose("encoder=2")
    run.drop(0)
    with pytest.raises(UserError, match=r"keep_tasks=false, so the encoder of task 1 is gone; .* Write encoder=3"):
        choose("encoder=1")
    assert choose("encoder=3").seen == 3
