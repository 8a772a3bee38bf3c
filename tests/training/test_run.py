"""Training a stream: the Learner, the run directory, resuming, and one process against two."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from helpers import accuracy_of, apart, command, config, files_below, noise
from omegaconf import OmegaConf
from safetensors import safe_open
from safetensors.torch import load_file

from mergestream.compose.inputs import Inputs
from mergestream.compose.run import run_of as run_named_by
from mergestream.methods.method import Method
from mergestream.models import tiny
from mergestream.models.clip import TextHead
from mergestream.runs.directory import Run
from mergestream.runtime import files
from mergestream.training.learner import Learner

SHORT = ("tasks=3", "epochs=1")


def run_of(root: Path, *overrides: str) -> Run:
    return run_named_by(config("train", f"root={root}", "tasks=3", *overrides))


def trained_encoders(run: Run) -> list[dict[str, torch.Tensor]]:
    return [load_file(path) for path in run.encoders()]


def largest_difference(one, other) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_run_directory(trained):
    run = run_of(trained)
    assert run.path == trained / "digits/class-3/tiny/seq/seed-5"
    assert {str(p.relative_to(run.path)) for p in files_below(run.path) if "merges" not in p.parts} == {
        "config.yaml",
        "stream.json",
        "base.json",
        "metrics.json",
        "logs/metrics.csv",
        *(f"task-0{t}/{name}" for t in range(3) for name in ("encoder.safetensors", "evaluation.json")),
    }
    base = files.read_json(run.path / "base.json")
    path = trained / "_base" / f"{base['sha256']}.safetensors"
    import hashlib

    assert hashlib.sha256(path.read_bytes()).hexdigest() == base["sha256"]
    with safe_open(run.encoder(1), framework="pt") as file:
        assert file.metadata()["base_sha256"] == base["sha256"]
        assert file.metadata()["task"] == "1"
        assert set(file.keys()) == set(load_file(path))
    assert "conv1.weight" in load_file(path)  # names as in open_clip's visual tower, which alone is saved
    assert not any(name.startswith(("visual.", "transformer.resblocks.5")) for name in load_file(path))


def test_metrics_agree_with_each_other(trained):
    metrics = files.read_json(run_of(trained).metrics)
    stream = files.read_json(run_of(trained).path / "stream.json")
    assert metrics["schema_version"] == 1
    assert metrics["kind"] == "train"
    assert len(metrics["accuracy"]["task_agnostic"]) == len(metrics["accuracy"]["task_aware"]) == 3
    sizes = [task["test"] for task in stream["tasks"]]
    for row, overall in zip(metrics["accuracy"]["task_agnostic"], metrics["overall"], strict=True):
        assert sum(a * n for a, n in zip(row, sizes, strict=True)) / sum(sizes) == pytest.approx(overall)
    for agnostic, aware in zip(*metrics["accuracy"].values(), strict=True):
        assert all(0 <= a <= b <= 1 for a, b in zip(agnostic, aware, strict=True))
    assert metrics["summary"]["final_accuracy"] == metrics["overall"][-1] == metrics["seen"][-1]
    assert metrics["summary"]["average_incremental_accuracy"] == pytest.approx(sum(metrics["seen"]) / 3)
    assert metrics["environment"]["packages"]["torch"] == torch.__version__.split("+")[0]


def test_methods_differ_where_they_should(trained):
    seq, ind = (trained_encoders(run_of(trained, f"method={m}")) for m in ("seq", "ind"))
    assert largest_difference(seq[0], ind[0]) == 0  # both start at θ₀ with the same draws
    assert largest_difference(seq[1], ind[1]) > 0
    assert len(trained_encoders(run_of(trained, "method=joint"))) == 1
    assert not trained_encoders(run_of(trained, "method=zeroshot"))
    joint, zero = (files.read_json(run_of(trained, f"method={m}").metrics) for m in ("joint", "zeroshot"))
    assert joint["overall"][0] > zero["overall"][0]
    assert zero["overall"] == [zero["zero_shot"]["overall"]]


def test_training_moves_the_image_tower_only():
    torch.manual_seed(0)
    encoder = torch.nn.Linear(6, 4)
    learner = Learner(encoder, TextHead(torch.randn(5, 4), 3.0), [1, 3], torch.optim.AdamW, 0.1, Method("seq"))
    assert {id(p) for p in learner.parameters()} == {id(p) for p in encoder.parameters()}


def test_loss_is_the_mean_cross_entropy_over_the_classes_of_the_task(monkeypatch):
    torch.manual_seed(0)
    encoder, head = torch.nn.Linear(6, 4), TextHead(torch.nn.functional.normalize(torch.randn(5, 4)), 3.0)
    learner = Learner(encoder, head, [1, 3, 4], torch.optim.AdamW, 0.1, Method("seq"))
    monkeypatch.setattr(learner, "_log", lambda *_, **__: None)
    monkeypatch.setattr(type(learner), "trainer", property(lambda _: FakeTrainer))
    images, labels = torch.randn(7, 6), torch.tensor([1, 3, 4, 4, 1, 3, 3])
    loss = learner.training_step((images, labels, torch.full((7,), 1 / 7)), 0)
    expected = 0.0
    for image, label in zip(images, labels, strict=True):
        feature = encoder(image)
        feature = feature / feature.norm()
        logits = torch.stack([3.0 * feature @ head.weight_CD[c] for c in (1, 3, 4)])
        expected += (logits.exp().sum().log() - logits[[1, 3, 4].index(int(label))]).item() / 7
    assert loss.item() == pytest.approx(expected, rel=1e-5)


class FakeTrainer:
    optimizers = (torch.optim.SGD([torch.zeros(1)], lr=1.0),)


def test_key_bias_stays_where_it_was(trained):
    # Its exact gradient is zero, so only weight decay may move it.
    run = run_of(trained)
    base = load_file(next((trained / "_base").iterdir()))
    name = "transformer.resblocks.0.attn.in_proj_bias"
    before, after = base[name].chunk(3), trained_encoders(run)[0][name].chunk(3)
    shrinkage = after[1] / before[1]
    assert shrinkage.max() - shrinkage.min() < 1e-5
    assert (after[0] / before[0]).std() > 1e-4


def test_log_has_one_x_axis_for_all_tasks(trained):
    with (run_of(trained).path / "logs/metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    steps = [int(row["step"]) for row in rows]
    assert steps == sorted(steps)
    assert steps[-1] >= 10
    assert all(0 < float(row["lr"]) <= 3e-4 and float(row["loss"]) > 0 for row in rows)


def test_same_command_again_does_nothing(trained):
    run = run_of(trained)
    before = {path: path.stat().st_mtime_ns for path in files_below(run.path)}
    outcome = command("train.py", f"root={trained}", *SHORT)
    assert outcome.code == 0
    assert "already finished" in outcome.out
    assert before == {path: path.stat().st_mtime_ns for path in files_below(run.path)}


def test_seeds_decide_everything(trained, tmp_path):
    assert command("train.py", f"root={tmp_path}", *SHORT).code == 0
    for one, other in zip(trained_encoders(run_of(trained)), trained_encoders(run_of(tmp_path)), strict=True):
        assert largest_difference(one, other) == 0


def test_interrupted_run_continues_after_the_last_finished_task(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    run, whole = run_of(tmp_path), trained_encoders(run_of(trained))
    shutil.rmtree(run.task(2))
    run.evaluation(1).unlink()  # task 1 was saved but not evaluated when the power went
    run.metrics.unlink()
    first = run.encoder(0).stat().st_mtime_ns
    outcome = command("train.py", f"root={tmp_path}", *SHORT, "gradient_clip=1")  # which is the 1.0 of before
    assert outcome.code == 0, outcome.err
    assert "task 1/3" not in outcome.out
    assert "task 2/3" in outcome.out
    assert run.encoder(0).stat().st_mtime_ns == first
    for one, other in zip(whole, trained_encoders(run), strict=True):
        assert largest_difference(one, other) == 0
    keys = ("accuracy", "overall", "seen", "summary", "zero_shot")
    ours, theirs = files.read_json(run.metrics), files.read_json(run_of(trained).metrics)
    assert {k: ours[k] for k in keys} == {k: theirs[k] for k in keys}


@pytest.mark.parametrize("method", ["seq", "joint"])
def test_two_processes_equal_one(method, tmp_path):
    # Tasks of 54 images, 162 together: a last batch of one leaves a process without a sample.
    batch_size = {"seq": 53, "joint": 23}[method]
    short = [
        f"root={tmp_path}",
        *noise(),
        "epochs=1",
        f"batch_size={batch_size}",
        f"method={method}",
        "accelerator=cpu",
    ]
    for devices, tag in ((1, "one"), (2, "two")):
        outcome = command("train.py", *short, f"devices={devices}", f"tag={tag}")
        assert outcome.code == 0, outcome.err
    one, two = (run_of(tmp_path, *noise(), f"method={method}", f"tag={tag}") for tag in ("one", "two"))
    assert [task["train"] for task in one.stream()["tasks"]] == [54, 54, 54]
    for ours, theirs in zip(trained_encoders(one), trained_encoders(two), strict=True):
        assert apart(ours, theirs, load_file(one.base_file())) < 2e-3
    ours, theirs = files.read_json(one.metrics), files.read_json(two.metrics)
    assert ours["test_samples"] == theirs["test_samples"]
    assert ours["zero_shot"] == theirs["zero_shot"]
    assert ours["per_class"]["total"] == theirs["per_class"]["total"] == [6] * 6
    assert (ours["environment"]["processes"], theirs["environment"]["processes"]) == (1, 2)


@pytest.mark.parametrize("variables", [{}, {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}])
def test_an_srun_that_is_not_used(tmp_path, monkeypatch, variables):
    """On a login node, and in a batch script that asked for two tasks: one process, and no warning."""
    (tmp_path / "srun").write_text("#!/bin/sh\n")
    (tmp_path / "srun").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    outcome = command("train.py", f"root={tmp_path}/runs", *noise(), "epochs=1", "tasks=1", "logger=none")
    assert (outcome.code, outcome.err) == (0, "")


def test_a_sweep_runs_in_two_processes_too(tmp_path):
    arguments = ["-m", f"root={tmp_path}", *noise(), "devices=2", "accelerator=cpu", "method=zeroshot", "seed=1,2"]
    outcome = command("train.py", *arguments)
    assert outcome.code == 0, outcome.err
    assert all(run_of(tmp_path, *noise(), "method=zeroshot", f"seed={seed}").finished() for seed in (1, 2))


def test_an_error_in_a_process_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    outcome = command(
        "train.py", f"root={tmp_path}/runs", f"data.root={tmp_path}/data", "dataset=cifar100", "model=tiny", "devices=2"
    )
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert outcome.err.startswith("error: dataset=cifar100 needs")


def test_validation_is_cut_from_train_and_logged(tmp_path):
    assert command("train.py", f"root={tmp_path}", *SHORT, "stream.validation=0.2", "method=joint").code == 0
    run = run_of(tmp_path, "method=joint")
    with (run.path / "logs/metrics.csv").open() as file:
        values = [float(row["validation_accuracy"]) for row in csv.DictReader(file) if row["validation_accuracy"]]
    cfg = config("train", *SHORT, "stream.validation=0.2", "method=joint")
    OmegaConf.resolve(cfg)
    inputs = Inputs(cfg)
    source = inputs.source()
    tasks = inputs.stream(tiny.tiny().transforms, source).tasks
    chosen = [index for task in tasks for index in task.validation]
    (encoder,) = run.encoders()
    images = [source.train.images[index] for index in chosen]
    assert values == [pytest.approx(accuracy_of(encoder, images, source.train.labels[chosen], source.prompts))]
    stream = json.loads((run.path / "stream.json").read_text())
    assert sum(task["train"] + task["validation"] for task in stream["tasks"]) == 1352
    assert sum(task["validation"] for task in stream["tasks"]) == pytest.approx(0.2 * 1352, abs=10)
