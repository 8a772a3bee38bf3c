"""merge_every_task=true: the merge that is updated after each task, and the training around it."""

from __future__ import annotations

import shutil

import pytest
import torch
from helpers import Cut, apart, command, files_below
from references import curvature_of
from safetensors.torch import load_file, save_file

from mergestream import strategies
from mergestream.merging import merge_checkpoints
from mergestream.merging.accumulate import RunningMerge
from mergestream.merging.encoder import apply
from mergestream.runs.directory import Run
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

ADD = RunningMerge.add
RUNNING = [name for name in strategies.names() if strategies.get(name).running is not None]
OPTIONS = {
    "dop": {"steps": 10},
    "nufilt": {"layers": [""], "null_rank": 4, "task_rank": 2, "rank": 3, "steps": 10},
}


def test_which_strategies_can_continue_task_by_task():
    assert RUNNING == ["average", "dop", "ema", "fisher", "magmax", "nufilt", "opcm", "regmean", "task_arithmetic"]


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("coarse", [False, True])
def test_a_running_merge_equals_the_merge_of_all_tasks_to_the_bit(name, coarse, tmp_path):
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / str(i) / "encoder.safetensors" for i in range(6)]
    for path in paths:
        values = torch.randn(*((30, 50) if strategies.get(name).whole else (300, 500)), generator=generator)
        path.parent.mkdir()
        save_file({"w": (values * 2).round() if coarse else values, "b": torch.randn(7, generator=generator)}, path)
    if kind := strategies.get(name).needs:
        found = curvature_of({"w": torch.zeros(5, *values.shape), "b": torch.zeros(5, 7)}, name)
        for i, path in enumerate(paths[1:]):
            save_file({n: c[i].float() for n, c in found.items()}, path.parent / f"{kind}.safetensors")
    options = OPTIONS.get(name, {})
    running = RunningMerge(tmp_path / "running.safetensors", strategies.get(name).bind(options))
    for task, path in enumerate(paths[1:]):
        running.add(task, paths[0], path)
        running.add(task, paths[0], path)  # changes nothing
        assert running.tasks == task + 1
        tau, inputs = running.task_vector()
        assert len(inputs) == task + 2
        merge_checkpoints(paths[0], paths[1 : task + 2], name, tmp_path / "m.safetensors", scale=0.7, **options)
        expected, merged = load_file(tmp_path / "m.safetensors"), apply(load_file(paths[0]), tau, 0.7)
        assert all(torch.equal(merged[key], expected[key]) for key in expected)


def test_a_running_merge_refuses_what_does_not_continue_it(tmp_path):
    path = tmp_path / "0.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(UserError, match="strategy that can continue task by task: .*strategy=ties needs all"):
        RunningMerge(tmp_path / "r.safetensors", strategies.get("ties").bind({}))
    ema = strategies.get("ema")
    running = RunningMerge(tmp_path / "r.safetensors", ema.bind({"decay": 0.5}))
    with pytest.raises(UserError, match="r.safetensors holds 0 tasks, got task 2"):
        running.add(1, path, path)
    running.add(0, path, path)
    with pytest.raises(
        UserError, match='made with {"decay": 0.5}, got {"decay": 0.9}. Use the options of the training'
    ):
        RunningMerge(tmp_path / "r.safetensors", ema.bind({"decay": 0.9})).add(1, path, path)
    save_file({"w": torch.tensor([1.0, float("nan")])}, tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=r"w in .*bad.safetensors has NaN"):
        running.add(1, path, tmp_path / "bad.safetensors")
    assert running.tasks == 1


@pytest.fixture(scope="module")
def train(words, run_at):
    """Train with a running merge below a root; returns the run."""

    def run(root, *overrides):
        outcome = command("train.py", f"root={root}", *words, "merge_every_task=true", *overrides)
        assert outcome.code == 0, outcome.err
        return run_at(root, *(word for word in overrides if word.startswith("method")))

    return run


@pytest.fixture(scope="module")
def light(train, tmp_path_factory):
    """A run that kept only the last encoder and the merge. Not to be changed."""
    return train(tmp_path_factory.mktemp("light"), "keep_tasks=false")


@pytest.fixture(scope="module")
def full(train, tmp_path_factory):
    """A run that kept all encoders and the merge. Not to be changed."""
    return train(tmp_path_factory.mktemp("full"))


def result(run):
    """The bits of the last encoder and of the merge, and the accuracies of the merge."""
    folder = run.path / "merges/magmax-0.5"
    merged, metrics = load_file(folder / "merged.safetensors"), files.read_json(folder / "metrics.json")
    return load_file(run.encoder(2)), merged, metrics["overall"]


def same(one, two):
    (*ours, accuracies), (*theirs, expected) = one, two
    equal = all(torch.equal(a[name], b[name]) for a, b in zip(ours, theirs, strict=True) for name in b)
    return equal and accuracies == expected


def kept(run):
    return [path.parent.name for path in run.encoders()]


@pytest.mark.parametrize("method", ["seq", "lwf", "ewc"])
def test_the_merge_is_that_of_a_training_without_it(method, request, train, finished, words, run_at, tmp_path):
    ours = request.getfixturevalue("light") if method == "seq" else None
    ours = ours or train(tmp_path / "light", f"method={method}", "keep_tasks=false")
    assert kept(ours) == ["task-02"]
    if method == "seq":
        shutil.copytree(finished, tmp_path / "plain")
    else:
        assert command("train.py", f"root={tmp_path}/plain", *words, f"method={method}").code == 0
    outcome = command("merge.py", f"root={tmp_path}/plain", *words, f"method={method}", "prefixes=true")
    assert outcome.code == 0, outcome.err
    assert same(result(ours), result(run_at(tmp_path / "plain", f"method={method}")))


def test_a_running_merge_that_keeps_the_lengths_of_the_tasks(full, train, words, tmp_path):
    """OPCM scales its result by them. The merge is the same from all encoders, and from none but the last."""
    shutil.copytree(full.root, tmp_path / "all")
    outcome = command("merge.py", f"root={tmp_path}/all", *words, "strategy=opcm")
    assert outcome.code == 0, outcome.err
    run = train(tmp_path / "last", "strategy=opcm", "keep_tasks=false")
    assert kept(run) == ["task-02"]
    one, two = (load_file(next((tmp_path / name).rglob("opcm-1/merged.safetensors"))) for name in ("all", "last"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_running_merge_with_the_gram_matrices_of_each_task(train, words, tmp_path, monkeypatch):
    """RegMean from the running sums, of a training that was cut off, and from all encoders and their Gram matrices."""
    outcome = command("train.py", f"root={tmp_path}/all", *words, "curvature.gram=true", "evaluate=last")
    assert outcome.code == 0, outcome.err
    outcome = command("merge.py", f"root={tmp_path}/all", *words, "strategy=regmean")
    assert outcome.code == 0, outcome.err
    light = ("strategy=regmean", "curvature.gram=true", "keep_tasks=false", "evaluate=last")
    with monkeypatch.context() as patch:
        patch.setattr(RunningMerge, "add", add_then_cut)
        with pytest.raises(Cut):
            command("train.py", f"root={tmp_path}/last", *words, "merge_every_task=true", *light)
    run = train(tmp_path / "last", *light)
    assert kept(run) == ["task-02"]
    assert len(list(run.path.rglob("gram.safetensors"))) == 1
    one, two = (load_file(next((tmp_path / name).rglob("regmean-1/merged.safetensors"))) for name in ("all", "last"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    again = command("train.py", f"root={tmp_path}/last", *words, "merge_every_task=true", *light)
    assert "already finished, nothing to do" in again.out


def test_keeping_all_encoders_changes_no_bit(full, light):
    assert kept(full) == ["task-00", "task-01", "task-02"]
    assert same(result(full), result(light))


def test_two_processes_make_the_same_merge(light, train, tmp_path):
    two = train(tmp_path / "two", "keep_tasks=false", "devices=2", "accelerator=cpu")
    assert apart(result(light)[1], result(two)[1], load_file(two.base_file())) < 2e-3
    assert kept(two) == ["task-02"]


def cut(*_):
    raise Cut


def add_then_cut(self, task, *arguments):
    ADD(self, task, *arguments)
    if task == 1:
        raise Cut


PLACES = {
    "before the merge": (RunningMerge, "add", lambda self, task, *rest: cut() if task else ADD(self, task, *rest)),
    "after the merge": (RunningMerge, "add", add_then_cut),
    "before the evaluation": ("mergestream.training.merge_every_task.write_merged", cut),
    "before the old encoder goes": (Run, "drop", cut),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_training_that_is_cut_off_ends_alike(place, light, words, train, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(*PLACES[place])
        with pytest.raises(Cut):
            command("train.py", f"root={tmp_path}", *words, "merge_every_task=true", "keep_tasks=false")
    run = train(tmp_path, "keep_tasks=false")
    assert kept(run) == ["task-02"]
    assert same(result(run), result(light))
    assert run.encoder(2).read_bytes() == light.encoder(2).read_bytes()


def test_another_lambda_halfway_is_refused(words, tmp_path, monkeypatch):
    arguments = (f"root={tmp_path}", *words, "merge_every_task=true", "keep_tasks=false")
    with monkeypatch.context() as patch:
        patch.setattr(Run, "drop", cut)
        with pytest.raises(Cut):
            command("train.py", *arguments)
    outcome = command("train.py", *arguments, "lambda=0.9")
    assert outcome.code == 1
    assert "Use the values that the run was started with" in outcome.err


def test_a_run_without_its_encoders_is_merged_by_its_strategy_alone(light, words, tmp_path):
    shutil.copytree(light.root, tmp_path, dirs_exist_ok=True)
    outcome = command("merge.py", f"root={tmp_path}", *words, "lambda=[0.3,0.7]")
    assert outcome.code == 0, outcome.err
    assert len(list(tmp_path.rglob("merges/magmax-0.3/metrics.json"))) == 1
    others = ("strategy=regmean", "curvature.gram=true", "merge_every_task=true", "keep_tasks=false")
    outcome = command("train.py", f"root={tmp_path}", *words, *others)
    assert outcome.code == 1
    assert "curvature.gram=true needs the encoder of each task" in outcome.err
    for override, message in (
        ("strategy=ties", "only strategy=magmax can be merged"),
        ("prefixes=true", "prefixes=true needs every encoder"),
    ):
        outcome = command("merge.py", f"root={tmp_path}", *words, override)
        assert outcome.code == 1
        assert message in outcome.err
        assert len(outcome.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["keep_tasks=false"], "write merge_every_task=true"),
        (["merge_every_task=true", "strategy=tsv"], "strategy that can continue task by task"),
        (["merge_every_task=true", "strategy=regmean"], "needs the Gram matrices of each; write curvature.gram=true"),
        (
            ["merge_every_task=true", "strategy=fisher", "strategy.floor=0", "curvature.fisher=true"],
            "strategy.floor must be a number, positive",
        ),
        (
            [
                "merge_every_task=true",
                "keep_tasks=false",
                "strategy=fisher",
                "curvature.fisher=true",
                "curvature.gram=true",
            ],
            "leave curvature.gram=true out",
        ),
        (["merge_every_task=true", "strategy=nufilt", "strategy.rank=-1"], "strategy.rank must be a whole number"),
        (["merge_every_task=true", "strategy=opcm", "strategy.alpha=2"], "strategy.alpha must be a fraction"),
        (["merge_every_task=true", "strategy=ema", "strategy.decay=1"], "strategy.decay must be a fraction"),
        (["merge_every_task=true", "method=joint"], "an encoder for each task; got method=joint"),
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


def test_options_that_do_not_fit_the_weights_are_refused_before_the_training(words, tmp_path):
    wide = ["strategy.null_rank=4096"]
    outcome = command("train.py", f"root={tmp_path}", *words, "merge_every_task=true", "strategy=nufilt", *wide)
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert "strategy.null_rank must be at most" in line
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_null_space_of_every_input_is_said_before_the_training(words, tmp_path):
    quick = ["strategy.steps=0", "strategy.layers=[0.attn.out_proj]"]
    outcome = command("train.py", f"root={tmp_path}", *words, "merge_every_task=true", "strategy=nufilt", *quick)
    assert outcome.code == 0
    assert "strategy.null_rank=128 protects every input of transformer.resblocks.0.attn.out_proj.weight" in outcome.out


def deleted(path):
    path.unlink()


def halved(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path):
    sound = path.read_bytes()
    path.write_bytes(sound[:-20] + bytes([sound[-20] ^ 1]) + sound[-19:])


DAMAGE = [("running/magmax.safetensors", deleted), ("running/magmax.safetensors", flipped)]
DAMAGE += [("task-01/magmax-0.5.json", deleted), ("task-01/magmax-0.5.json", halved)]
DAMAGE += [("task-00/evaluation.json", deleted), ("task-00/evaluation.json", flipped)]


@pytest.mark.parametrize("keep", [True, False])
def test_damage_is_reported_and_repaired(keep, full, light, words, tmp_path):
    """With all encoders only the damaged part is made again, without them everything."""
    source = full if keep else light
    shutil.copytree(source.root, tmp_path, dirs_exist_ok=True)
    path = tmp_path / source.path.relative_to(source.root)
    merge = path / "merges/magmax-0.5/merged.safetensors"
    expected = {file: file.read_bytes() for file in path.rglob("*.safetensors")}
    assert merge in expected
    arguments = ("train.py", f"root={tmp_path}", *words, "merge_every_task=true", f"keep_tasks={str(keep).lower()}")
    for name, damage in [*DAMAGE, *[("task-00/encoder.safetensors", halved)] * keep]:
        sound = (path / name).read_bytes()
        damage(path / name)
        outcome = command(*arguments)
        assert outcome.code == 1, name
        (line,) = outcome.err.strip().splitlines()
        assert (path / name).parent.name in line
        assert "repair=true" in line
        if damage is not deleted and keep:  # the other damage to this file takes the same way
            outcome = command(*arguments, "repair=true")
            assert outcome.code == 0, outcome.err
            assert {file: file.read_bytes() for file in path.rglob("*.safetensors")} == expected
        else:
            (path / name).write_bytes(sound)
    if not keep:
        halved(path / "running/magmax.safetensors")
        outcome = command(*arguments, "repair=true")
        assert outcome.code == 0, outcome.err
        assert {file: file.read_bytes() for file in path.rglob("*.safetensors")} == expected
