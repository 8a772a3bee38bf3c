"""A merge that follows the training, and λ chosen without the test data."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers import apart, command, config, files_below, noise
from safetensors.torch import load_file, save_file

from mergestream import evaluation, strategies
from mergestream.merging import merge_checkpoints
from mergestream.merging.accumulate import RunningMerge
from mergestream.merging.run import apply
from mergestream.runs.directory import Run
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

ADD = RunningMerge.add
NOISE = (*noise(), "epochs=1")
FOLLOWED = (*NOISE, "merge_every_task=true")


def run_of(root, *overrides):
    return Run.of(config("train", f"root={root}", *NOISE, *overrides))


def train(root, *overrides):
    outcome = command("train.py", f"root={root}", *FOLLOWED, *overrides)
    assert outcome.code == 0, outcome.err
    return run_of(root, *(o for o in overrides if o.startswith("method")))


RUNNING = [name for name in strategies.names() if strategies.get(name).running]


def test_which_strategies_can_be_continued():
    assert RUNNING == ["average", "ema", "magmax", "task_arithmetic"]


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("coarse", [False, True])
def test_equal_to_the_merge_made_afterwards_to_the_bit(name, coarse, tmp_path):
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{i}.safetensors" for i in range(6)]
    for path in paths:
        values = torch.randn(300, 500, generator=generator)
        save_file({"w": (values * 2).round() if coarse else values, "b": torch.randn(7, generator=generator)}, path)
    strategy = strategies.get(name)
    running = RunningMerge(tmp_path / "running.safetensors", strategy, strategy.defaults())
    for task, path in enumerate(paths[1:]):
        running.add(task, paths[0], path)
        running.add(task, paths[0], path)  # once more changes nothing
        assert running.tasks == task + 1
        tau, inputs = running.task_vector()
        assert len(inputs) == task + 2
        merge_checkpoints(paths[0], paths[1 : task + 2], name, tmp_path / "m.safetensors", scale=0.7)
        expected, merged = load_file(tmp_path / "m.safetensors"), apply(load_file(paths[0]), tau, 0.7)
        assert all(torch.equal(merged[key], expected[key]) for key in expected)


def test_a_running_merge_refuses_what_does_not_continue_it(tmp_path):
    path = tmp_path / "0.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(UserError, match="strategy that can be continued: .*strategy=ties needs all"):
        RunningMerge(tmp_path / "r.safetensors", strategies.get("ties"), {})
    ema = strategies.get("ema")
    running = RunningMerge(tmp_path / "r.safetensors", ema, {"decay": 0.5})
    with pytest.raises(UserError, match="holds 0 tasks, so task 2 does not continue it"):
        running.add(1, path, path)
    running.add(0, path, path)
    with pytest.raises(UserError, match="Use the options of the training"):
        RunningMerge(tmp_path / "r.safetensors", ema, {"decay": 0.9}).add(1, path, path)
    save_file({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"w in .*bad.safetensors has NaN"):
        running.add(1, path, tmp_path / "bad.safetensors")
    assert running.tasks == 1


def tensors_and_overall(folder):
    return load_file(folder / "merged.safetensors"), files.read_json(folder / "metrics.json")["overall"]


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """A run with the last encoder and the merge only."""
    return train(tmp_path_factory.mktemp("followed"), "keep_tasks=false")


@pytest.mark.parametrize("method", ["seq", "lwf", "ewc"])
def test_training_follows_with_one_encoder_on_disk(method, tmp_path):
    run = train(tmp_path / "followed", f"method={method}", "keep_tasks=false")
    assert [path.parent.name for path in run.encoders()] == ["task-02"]
    plain = command("train.py", f"root={tmp_path}/plain", *NOISE, f"method={method}")
    assert plain.code == 0, plain.err
    merged = command("merge.py", f"root={tmp_path}/plain", *NOISE, f"method={method}", "prefixes=true")
    assert merged.code == 0, merged.err
    other = run_of(tmp_path / "plain", f"method={method}")
    ours, theirs = (tensors_and_overall(r.path / "merges/magmax-0.5") for r in (run, other))
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])
    assert ours[1] == theirs[1]
    assert load_file(run.encoder(2)).keys() == load_file(other.encoder(2)).keys()
    assert all(torch.equal(t, load_file(other.encoder(2))[n]) for n, t in load_file(run.encoder(2)).items())


def test_two_processes_follow_alike(followed, tmp_path):
    two = train(tmp_path / "two", "keep_tasks=false", "devices=2", "accelerator=cpu")
    merges = [load_file(run.path / "merges/magmax-0.5/merged.safetensors") for run in (followed, two)]
    assert apart(*merges, load_file(two.base_file())) < 2e-3
    assert [path.parent.name for path in two.encoders()] == ["task-02"]


@pytest.mark.parametrize("place", ["before add", "after add", "before evaluation", "before removal"])
def test_cut_off_anywhere_it_ends_alike(place, followed, tmp_path, monkeypatch):

    class Cut(Exception):
        pass

    def cut(*_):
        raise Cut

    def after(function):
        def wrapped(self, task, *arguments):
            function(self, task, *arguments)
            if task == 1:
                raise Cut

        return wrapped

    with monkeypatch.context() as patch:
        if place == "before add":
            patch.setattr(RunningMerge, "add", lambda self, task, *a: cut() if task == 1 else ADD(self, task, *a))
        elif place == "after add":
            patch.setattr(RunningMerge, "add", after(ADD))
        elif place == "before evaluation":
            patch.setattr("mergestream.training.merge_every_task.write_merged", cut)
        else:
            patch.setattr(Run, "drop", cut)
        with pytest.raises(Cut):
            command("train.py", f"root={tmp_path}/cut", *FOLLOWED, "keep_tasks=false")
    run = train(tmp_path / "cut", "keep_tasks=false")
    assert [path.parent.name for path in run.encoders()] == ["task-02"]
    ours, theirs = (tensors_and_overall(r.path / "merges/magmax-0.5") for r in (run, followed))
    assert all(torch.equal(ours[0][name], theirs[0][name]) for name in theirs[0])
    assert ours[1] == theirs[1]
    assert run.encoder(2).read_bytes() == followed.encoder(2).read_bytes()


def test_another_lambda_halfway_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Run, "drop", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            command("train.py", f"root={tmp_path}", *FOLLOWED, "keep_tasks=false")
    outcome = command("train.py", f"root={tmp_path}", *FOLLOWED, "keep_tasks=false", "lambda=0.9")
    assert outcome.code == 1
    assert "Use those that the run was started with" in outcome.err
    outcome = command("train.py", f"root={tmp_path}/other", *FOLLOWED, "method=joint")
    assert outcome.code == 1
    assert "an encoder for each task; got method=joint" in outcome.err


def test_merging_a_run_without_its_encoders(followed):
    outcome = command("merge.py", f"root={followed.root}", *NOISE, "lambda=[0.3,0.7]")
    assert outcome.code == 0, outcome.err
    assert (followed.path / "merges/magmax-0.3/metrics.json").is_file()
    for override, message in (
        ("strategy=ties", "only strategy=magmax can be merged"),
        ("prefixes=true", "prefixes=true"),
    ):
        outcome = command("merge.py", f"root={followed.root}", *NOISE, override)
        assert outcome.code == 1
        assert message in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["keep_tasks=false"], "write merge_every_task=true"),
        (["merge_every_task=true", "strategy=tsv"], "strategy that can be continued"),
        (["merge_every_task=1"], "must be true or false"),
        (["merge_every_task=true", "lambda=select"], "lambda must be a finite number"),
    ],
)
def test_wrong_values_are_one_line(overrides, message, tmp_path):
    outcome = command("train.py", f"root={tmp_path}", "tasks=3", *overrides)
    assert outcome.code == 1
    assert message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1
    assert not files_below(tmp_path)


# λ


def test_several_scales_at_once_are_the_single_ones(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    folder = Run.of(config("train", f"root={tmp_path}/runs", "tasks=3")).path / "merges"
    together = {}
    for value in ("[0.25,1]", "0.25", "1"):
        assert command("merge.py", f"root={tmp_path}/runs", "tasks=3", f"lambda={value}").code == 0
        for name in ("magmax-0.25", "magmax-1"):
            current = (folder / name / "merged.safetensors").read_bytes(), tensors_and_overall(folder / name)[1]
            assert together.setdefault(name, current) == current


def test_lambda_is_selected_on_validation_data(tmp_path):
    arguments = [f"root={tmp_path}", *NOISE, "stream.validation=0.2"]
    assert command("train.py", *arguments).code == 0
    outcome = command("merge.py", *arguments, "lambda=select", "candidates=[0.1,0.5,0.9]")
    assert outcome.code == 0, outcome.err
    assert "chosen on validation data" in outcome.out
    folder = run_of(tmp_path).path / "merges/magmax-select"
    merge = json.loads((folder / "metrics.json").read_text())["merge"]
    assert merge["selected_on"] == "validation"
    tried = {item["lambda"]: item["accuracy"] for item in merge["validation"]}
    assert list(tried) == [0.1, 0.5, 0.9]
    assert tried[merge["scale"]] == max(tried.values())
    assert command("merge.py", *arguments, f"lambda={merge['scale']}").code == 0
    single = tensors_and_overall(run_of(tmp_path).path / f"merges/magmax-{merge['scale']:g}")
    assert tensors_and_overall(folder)[1] == single[1]
    assert "λ on validation" in command("report.py", f"root={tmp_path}").out


def test_select_never_looks_at_the_test_split(tmp_path, monkeypatch):
    """What is evaluated before the choice is the validation split."""
    arguments = [f"root={tmp_path}", *NOISE, "stream.validation=0.2"]
    assert command("train.py", *arguments).code == 0
    splits = []
    original = evaluation.evaluate

    def evaluate(*positional, split="test", **named):
        splits.append(split)
        return original(*positional, split=split, **named)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    outcome = command("merge.py", *arguments, "lambda=select", "candidates=[0.2,0.4,0.6]")
    assert outcome.code == 0, outcome.err
    assert splits == ["validation", "validation", "validation", "test"]


def test_select_needs_validation_data(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    outcome = command("merge.py", f"root={tmp_path}/runs", "tasks=3", "lambda=select")
    assert outcome.code == 1
    assert "stream.validation=0.1" in outcome.err
    assert not list((tmp_path / "runs").rglob("merges"))


@pytest.mark.parametrize("keep", ["true", "false"])
def test_damage_to_what_follows_the_training(keep, tmp_path):
    arguments = (f"root={tmp_path}", *FOLLOWED, f"keep_tasks={keep}")
    run = train(tmp_path, f"keep_tasks={keep}")
    merged = run.path / "merges/magmax-0.5/merged.safetensors"
    names = ["running/magmax.safetensors", "task-01/magmax-0.5.json", "task-00/evaluation.json"]
    if keep == "true":
        names.append("task-00/encoder.safetensors")
    expected = {path: path.read_bytes() for path in [merged, *run.path.rglob("*.safetensors")]}
    for name in names:
        path = run.path / name
        sound = path.read_bytes()
        for damaged in (None, sound[: len(sound) // 2], sound[:-20] + bytes([sound[-20] ^ 1]) + sound[-19:]):
            path.unlink() if damaged is None else path.write_bytes(damaged)
            outcome = command("train.py", *arguments)
            assert outcome.code == 1, name
            assert len(outcome.err.strip().splitlines()) == 1
            assert path.parent.name in outcome.err
            assert "repair=true" in outcome.err
        outcome = command("train.py", *arguments, "repair=true")
        assert outcome.code == 0, outcome.err
        assert {path: path.read_bytes() for path in run.path.rglob("*.safetensors")} == expected
