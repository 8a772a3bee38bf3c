"""Each figure's numbers against a small case done by hand; every figure of a real run."""

from __future__ import annotations

import copy
import math
import shutil

import pandas as pd
import pytest
import torch
from helpers import ROOT, command, config, noise
from open_clip.modified_resnet import ModifiedResNet
from PIL import Image
from safetensors.torch import save_file

from mergestream.analysis.consistency import consistency
from mergestream.analysis.contribution import contribution
from mergestream.analysis.cosine import cosine
from mergestream.analysis.distribution import distribution
from mergestream.analysis.interpolation import interpolation
from mergestream.analysis.landscape import landscape
from mergestream.analysis.layers import layers
from mergestream.analysis.per_task import per_task
from mergestream.analysis.pruning import pruning
from mergestream.analysis.sign_conflicts import sign_conflicts
from mergestream.analysis.subject import Subject, places
from mergestream.methods.method import Method
from mergestream.metrics import Row
from mergestream.runs.directory import Run
from mergestream.runtime import files
from mergestream.runtime.seeding import key
from mergestream.strategies.magmax import magmax

# Three tasks, five parameters in two weights.
TAUS = [
    [3.0, -1.0, 0.0, 2.0, 5.0],
    [-3.0, -2.0, 0.0, 1.0, 4.0],
    [1.0, -4.0, 0.0, -2.0, 6.0],
]
A, B = "transformer.resblocks.1.mlp.c_fc.weight", "proj"


@pytest.fixture
def subject(tmp_path, monkeypatch):
    """A subject whose files hold `TAUS` upon a θ₀ of ones, and whose accuracy is not measured."""

    def write(name, values):
        flat = torch.tensor(values)
        save_file({A: flat[:3].clone(), B: flat[3:].clone()}, tmp_path / name)
        return tmp_path / name

    found = Subject(config("analyze"), Run(tmp_path, tmp_path, "python train.py"))
    paths = [write(f"{t}.safetensors", [1 + x for x in tau]) for t, tau in enumerate(TAUS)]
    found.__dict__.update(base_file=write("base.safetensors", [1.0] * 5), encoders=paths)
    found.__dict__.update(task_names=["one", "two", "three"], method=Method("ind", start="base", data="task"))
    monkeypatch.setattr(Subject, "_of_method", lambda self, method: (method, self))
    return found


def measured(monkeypatch, value):
    """Let the accuracy of τ be value(its five elements)."""

    def accuracy(self, tau, scale=1.0, only=None):
        flat = scale * torch.cat([tau[A], tau[B]]) if tau else torch.zeros(5)
        found = value(flat)
        return Row([found] * 3, [found / 2] * 3, found, None)

    monkeypatch.setattr(Subject, "accuracy", accuracy)


def test_layers(subject):
    frame, _ = layers(subject)
    expected = {(A, 1): 4 / 3, (A, 2): 5 / 3, (A, 3): 5 / 3, (B, 1): 3.5, (B, 2): 2.5, (B, 3): 4.0}
    found = {(row.weight, row.task): row.mean_magnitude for row in frame.itertuples()}
    assert found == pytest.approx(expected)
    assert set(frame["kind"]) == {"mlp.c_fc.weight", "proj"}
    assert frame[frame["weight"] == A]["block"].tolist() == [0, 0, 0]  # the only block of the file
    assert frame[frame["weight"] == B]["block"].isna().all()


def test_kinds_of_weights():
    found = places([f"transformer.resblocks.{block}.attn.in_proj_weight" for block in range(12)] + ["ln_post.bias"])
    assert found["transformer.resblocks.11.attn.in_proj_weight"] == (11, "attn.in_proj_weight")
    assert found["ln_post.bias"] == (None, "ln_post.bias")
    stages = places(f"layer{stage}.{block}.conv1.weight" for stage in (2, 1) for block in (0, 1))
    assert [stages[f"layer{s}.{b}.conv1.weight"] for s in (1, 2) for b in (0, 1)] == [
        (i, "conv1.weight") for i in range(4)
    ]
    assert places(["layer1.0.downsample.0.weight"]) == {"layer1.0.downsample.0.weight": (0, "downsample.0.weight")}
    assert places(["stages.1.blocks.2.norm.weight", "stages.0.blocks.0.norm.weight", "blocks.7.1.bias"]) == {
        "stages.1.blocks.2.norm.weight": (2, "norm.weight"),
        "stages.0.blocks.0.norm.weight": (1, "norm.weight"),
        "blocks.7.1.bias": (0, "bias"),
    }


def test_blocks_of_a_resnet():
    found = places(ModifiedResNet([3, 4, 6, 3], output_dim=8, heads=2, width=8).state_dict())
    assert max(block for block, _ in found.values() if block is not None) == 3 + 4 + 6 + 3 - 1


def test_contribution(subject):
    # |3| and |−3|: the later, so task 2; |−4|; zeros: none; |2| and |−2|: task 3; 6.
    frame, _ = contribution(subject)
    won = {(row.weight, row.task): row.won for row in frame.itertuples()}
    assert won == {(A, 1): 0, (A, 2): 1, (A, 3): 1, (B, 1): 0, (B, 2): 0, (B, 3): 2}


def test_cosine(subject):
    frame, _ = cosine(subject)
    found = {(row.a, row.b): row.cosine for row in frame.itertuples()}
    assert found[1, 2] == pytest.approx((-9 + 2 + 2 + 20) / math.sqrt(39 * 30))
    assert found[2, 1] == found[1, 2]
    assert found[1, 3] == pytest.approx((3 + 4 - 4 + 30) / math.sqrt(39 * 57))
    assert [found[t, t] for t in (1, 2, 3)] == pytest.approx([1, 1, 1])


def test_distribution(subject):
    frame, _ = distribution(subject, bins=4)  # edges −6, −3, 0, 3, 6
    assert frame["left"].tolist()[:4] == [-6, -3, 0, 3]
    counts = frame.pivot(index="task", columns="left", values="task_vector").to_numpy().tolist()
    assert counts == [[0, 1, 2, 2], [0, 2, 2, 1], [1, 1, 2, 1]]
    taken = frame.pivot(index="task", columns="left", values="contribution").to_numpy().tolist()
    assert taken == [[0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 0, 1]]


def test_sign_conflicts(subject):
    frame, _ = sign_conflicts(subject, density=1.0, methods=["ind"])
    # After two tasks: the first parameter. After three: the fourth too. The third is zero everywhere.
    assert frame["conflicting"].tolist() == [1, 2]
    assert frame["surviving"].tolist() == [4, 4]
    assert frame["share"].tolist() == pytest.approx([1 / 5, 2 / 5])
    assert frame["share_of_surviving"].tolist() == pytest.approx([1 / 4, 1 / 2])
    frame, _ = sign_conflicts(subject, density=0.4, methods=["ind"])
    # The published trimming keeps one more than two of five: 3, 2, 5; −3, −2, 4; −4, −2, 6.
    assert frame["conflicting"].tolist() == [1, 2]
    assert frame["surviving"].tolist() == [2, 4]


def test_seeds_are_averaged(subject, monkeypatch):
    """The second has the tasks in the other order: two of five parameters disagree after two tasks and after three."""
    other = copy.copy(subject)
    other.__dict__["encoders"] = subject.encoders[::-1]
    monkeypatch.setattr(Subject, "of_seeds", lambda self, seeds: {1: subject, 2: other})
    frame, figure = sign_conflicts(subject, density=1.0, methods=["ind"], seeds=[1, 2])
    assert frame["share"].tolist() == pytest.approx([1 / 5, 2 / 5, 2 / 5, 2 / 5])
    (line,), (band,) = figure.axes[0].lines, figure.axes[0].collections
    assert line.get_ydata() == pytest.approx([30, 40])
    heights = band.get_paths()[0].vertices
    deviation = 100 * math.sqrt(2 * 0.1**2)
    assert sorted(set(heights[heights[:, 0] == 2, 1])) == pytest.approx([30 - deviation, 30 + deviation])


def test_every_seed_is_in_the_numbers(tmp_path):
    """Of two seeds, each with its own class order; and what stands in the way of it."""
    arguments = [f"root={tmp_path}", *noise(), "epochs=1"]
    assert command("train.py", "-m", *arguments, "seed=1,2", "method=seq,ind").code == 0
    seeds = "analysis.seeds=[1,2]"
    outcome = command("analyze.py", *arguments, "seed=1", "analysis=sign_conflicts", seeds)
    assert outcome.code == 0, outcome.err
    (csv,) = tmp_path.rglob("sign_conflicts-seeds=*.csv")
    frame = pd.read_csv(csv)
    assert sorted(zip(frame["method"], frame["seed"], frame["tasks"], strict=True)) == [
        (method, seed, tasks) for method in ("ind", "seq") for seed in (1, 2) for tasks in (2, 3)
    ]
    assert command("analyze.py", *arguments, "seed=2", "analysis=sign_conflicts").code == 0
    alone = pd.read_csv(next(path for path in tmp_path.rglob("sign_conflicts.csv")))
    of_second = frame[frame["seed"] == 2].sort_values(["method", "tasks"])
    assert of_second["conflicting"].tolist() == alone.sort_values(["method", "tasks"])["conflicting"].tolist()
    assert command("train.py", *arguments, "seed=3", "optimizer.lr=1e-3").code == 0
    for given, message in (
        ("[1,3]", "runs of several seeds differ in nothing else; "),
        ("[1,9]", "a finished run is needed"),
        ("3", "analysis.seeds must be a list of seeds"),
        ("[]", "analysis.seeds must be a list of seeds"),
        ("[a]", "analysis.seeds must be a whole number"),
    ):
        outcome = command("analyze.py", *arguments, "seed=2", "analysis=sign_conflicts", f"analysis.seeds={given}")
        assert outcome.code == 1
        assert message in outcome.err


def test_consistency(subject):
    frame, _ = consistency(subject, methods=["ind"])
    # Largest magnitudes 3, 4, 0, 2, 6; the same way: 2 (3, −3, 1), 3, 0, 2, 3 times.
    assert frame["consistent"].tolist() == [0, 2, 3]
    assert frame["parameters"].tolist() == [1, 2, 2]
    assert frame["mean_magnitude"].tolist() == pytest.approx([0, (3 + 2) / 2, (4 + 6) / 2])
    subject.__dict__["method"] = Method("seq", start="previous", data="task")
    frame, _ = consistency(subject, methods=["seq"])
    # Updates (3, −6, 4), (−1, −1, −2), 0, (2, −1, −3), (5, −1, 2).
    assert frame["consistent"].tolist() == [0, 2, 3]
    assert frame["parameters"].tolist() == [1, 3, 1]
    assert frame["mean_magnitude"].tolist() == pytest.approx([0, (3 + 2 + 6) / 3, 4])


def test_pruning(subject, monkeypatch):
    measured(monkeypatch, lambda tau: tau.abs().sum().item())
    frame, _ = pruning(subject, keep=[0.2, 0.4, 1.0])
    by = {(row.task, row.order, row.kept): row.task_agnostic for row in frame.itertuples()}
    assert [by[3, "highest", k] for k in (0.0, 0.2, 0.4, 1.0)] == [0, 6, 10, 13]
    assert [by[3, "lowest", k] for k in (0.0, 0.2, 0.4, 1.0)] == [0, 0, 1, 13]
    assert [by[1, "highest", k] for k in (0.2, 0.4, 1.0)] == [5, 8, 11]
    draws = {
        name: torch.rand(size, generator=torch.Generator().manual_seed(key(subject.cfg.seed, "pruning", 2, name)))
        for name, size in ((A, 3), (B, 2))
    }
    magnitudes, draw = torch.tensor(TAUS[2]).abs(), torch.cat([draws[A], draws[B]])
    for share in (0.2, 0.4, 1.0):  # of one draw, so that the larger share holds the smaller
        assert by[3, "random", share] == magnitudes[draw < share].sum()
    assert 0 < by[3, "random", 0.4] < 13
    assert frame["task_aware"].tolist() == pytest.approx([x / 2 for x in frame["task_agnostic"]])


def test_interpolation(subject, monkeypatch):
    subject.__dict__["_bound"] = (magmax, {})
    monkeypatch.setattr(Run, "base", lambda self: {"clip_parameters": 5})
    measured(monkeypatch, lambda tau: tau[4].item())
    frame, _ = interpolation(subject, scales=[0.5, 0.0], steps=[0.0, 0.25], between=[1, 3])
    assert frame["position"].tolist() == [0, 0.5, 0, 0.25]
    assert frame["overall"].tolist() == [0, 3, 5, 5.25]


def test_landscape(subject, monkeypatch):
    measured(monkeypatch, lambda tau: tau.square().sum().item())
    frame, _ = landscape(subject, grid=3, margin=0.0, between=[1, 2])
    # τ_2 along τ_1 is 15/39, across it √(30 − 15²/39)/√39; a point's squared length is 39 (x² + y²).
    places = frame.set_index("model").loc[["θ₀", "θ1", "θ2"]]
    assert places["x"].tolist() == pytest.approx([0, 1, 15 / 39])
    assert places["y"].tolist() == pytest.approx([0, 0, math.sqrt(30 - 15**2 / 39) / math.sqrt(39)])
    assert places["overall"].tolist() == pytest.approx([0, 39, 30], rel=1e-5)
    assert frame["overall"].tolist() == pytest.approx((39 * (frame["x"] ** 2 + frame["y"] ** 2)).tolist(), abs=1e-4)
    assert len(frame) == 9 + 3


def test_per_task(subject, monkeypatch):
    subject.__dict__["_bound"] = (magmax, {})
    monkeypatch.setattr(Run, "base", lambda self: {"clip_parameters": 5})
    measured(monkeypatch, lambda tau: tau[1].item())
    frame, _ = per_task(subject)
    found = frame.groupby("model", sort=False)["task_agnostic"].first().to_dict()
    assert found == {"zero-shot": 0, "last task": -4, "magmax, λ = 0.5": -2}


NAMES = sorted(path.stem for path in (ROOT / "configs/analysis").glob("*.yaml"))
SMALL = {"landscape": ["analysis.grid=3"], "pruning": ["analysis.keep=[0.2,1]"]}
SMALL["interpolation"] = ["analysis.scales=[0,0.5]", "analysis.steps=[0,1]", "strategy=average"]


@pytest.fixture(scope="module")
def root(trained, tmp_path_factory):
    root = tmp_path_factory.mktemp("analysed")
    shutil.copytree(trained, root, dirs_exist_ok=True)
    return root


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_of_a_run(name, root):
    arguments = [f"root={root}", "tasks=3", f"analysis={name}", *SMALL.get(name, [])]
    outcome = command("analyze.py", *arguments)
    assert outcome.code == 0, outcome.err
    folder = Run.of(config("train", f"root={root}", "tasks=3")).path / "analyses"
    stem = "-".join([name, *sorted(word.removeprefix("analysis.") for word in SMALL.get(name, []))])
    with Image.open(folder / f"{stem}.png") as image:
        assert image.size[0] > 400
    assert (folder / f"{stem}.svg").read_text().startswith("<?xml")
    assert len(pd.read_csv(folder / f"{stem}.csv")) > 2


@pytest.mark.parametrize("name", ["distribution", "per_task"])  # of values in threads; of accuracies
def test_figures_are_the_same_again(name, root):
    arguments = [f"root={root}", "tasks=3", f"analysis={name}"]
    folder = Run.of(config("train", f"root={root}", "tasks=3")).path / "analyses"

    def drawn():
        assert command("analyze.py", *arguments).code == 0
        return {kind: (folder / f"{name}.{kind}").read_bytes() for kind in ("png", "svg", "csv")}

    assert drawn() == drawn()


def test_a_strategy_that_counts_for_nothing_names_no_file(root):
    outcome = command("analyze.py", f"root={root}", "tasks=3", "analysis=cosine", "strategy=ties")
    assert outcome.code == 0
    assert "strategy=ties is left out: analysis=cosine does not ask for it" in outcome.out
    folder = Run.of(config("train", f"root={root}", "tasks=3")).path / "analyses"
    assert [path.name for path in folder.glob("cosine*.csv")] == ["cosine.csv"]


def test_what_compared_runs_differ_in_is_said(root, monkeypatch):
    arguments = [f"root={root}", "tasks=3", "analysis=consistency"]
    assert "epochs" not in command("analyze.py", *arguments).out
    config_of = Run.config
    epochs = {"ind": 7, "seq": 1}
    monkeypatch.setattr(Run, "config", lambda run: changed(config_of(run), run))

    def changed(cfg, run):
        cfg.epochs = epochs[run.path.parts[-2]]
        return cfg

    assert "ind (epochs=7)" in command("analyze.py", *arguments).out
    csv = Run.of(config("train", f"root={root}", "tasks=3")).path / "analyses/consistency.csv"
    assert set(pd.read_csv(csv)["method"]) == {"ind (epochs=7)", "seq"}
    stream_of = Run.stream
    monkeypatch.setattr(Run, "stream", lambda run: {**stream_of(run), "of": run.path.parts[-2]})
    outcome = command("analyze.py", *arguments)
    assert outcome.code == 1
    assert "the same θ₀ and data" in outcome.err


@pytest.mark.parametrize("name", ["consistency", "contribution", "cosine", "distribution", "layers", "sign_conflicts"])
def test_what_measures_no_accuracy_holds_no_encoder(name, root, monkeypatch):
    monkeypatch.setattr(files, "read_tensors", lambda path: pytest.fail(f"{path} was read as a whole"))
    outcome = command("analyze.py", f"root={root}", "tasks=3", f"analysis={name}")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("name", ["cosine", "per_task", "pruning"])  # by blocks, by the last encoder, task by task
def test_a_missing_encoder_is_an_error(name, root, tmp_path):
    shutil.copytree(root, tmp_path / "runs")
    run = Run.of(config("train", f"root={tmp_path}/runs", "tasks=3"))
    run.encoder(2).unlink()
    outcome = command("analyze.py", f"root={tmp_path}/runs", "tasks=3", f"analysis={name}")
    assert outcome.code == 1
    assert "task-02" in outcome.err


def test_runs_that_kept_no_tasks(tmp_path):
    arguments = [f"root={tmp_path}", *noise(), "epochs=1"]
    assert command("train.py", *arguments, "merge_every_task=true", "keep_tasks=false").code == 0
    outcome = command("analyze.py", *arguments, "analysis=cosine")
    assert outcome.code == 1
    assert "an analysis needs every encoder" in outcome.err
    assert "keep_tasks=true tag=NAME" in outcome.err


def test_joint_training_has_one_encoder(root):
    arguments = [f"root={root}", "tasks=3", "method=joint"]
    assert command("analyze.py", *arguments, "analysis=pruning", "analysis.keep=[0.2,1]").code == 0
    assert command("analyze.py", *arguments, "analysis=per_task").code == 0
    folder = Run.of(config("train", *arguments)).path / "analyses"
    assert set(pd.read_csv(folder / "pruning-keep=[0.2,1].csv")["name"]) == {"all"}
    assert set(pd.read_csv(folder / "per_task.csv")["model"]) == {"zero-shot", "joint", "magmax, λ = 0.5"}


def test_accuracies_are_those_of_the_run(root):
    assert command("analyze.py", f"root={root}", "tasks=3", "analysis=per_task").code == 0
    run = Run.of(config("train", f"root={root}", "tasks=3"))
    metrics = run.read(run.metrics)
    frame = pd.read_csv(run.path / "analyses/per_task.csv")
    last = frame[frame["model"] == "last task"]
    assert last["task_agnostic"].tolist() == pytest.approx(metrics["accuracy"]["task_agnostic"][-1], abs=0.005)
    base = frame[frame["model"] == "zero-shot"]
    assert base["task_aware"].tolist() == pytest.approx(metrics["zero_shot"]["task_aware"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["analysis=pruning", "analysis.keep=[0.5,2]"], "analysis.keep must be a list of numbers, above 0, at most 1"),
        (["analysis=pruning", "analysis.keep=0.5"], "analysis.keep must be a list of numbers"),
        (["analysis.density=0"], "analysis.density must be a fraction in"),
        (["analysis.methods=[ind,ewc]"], "a finished run is needed"),
        (
            ["analysis.methods=seq"],
            "analysis.methods must be a list of methods, such as [ind,seq]; got analysis.methods=",
        ),
        (["analysis.methods=[1]"], "analysis.methods must be a list of methods"),
        (["analysis.methods=[]"], "analysis.methods must be a list of methods"),
        (["analysis.methods=[joint]"], "this analysis compares encoders"),
        (["analysis=landscape", "analysis.grid=1"], "analysis.grid must be a whole number, between 2 and 101"),
        (["analysis=landscape", "analysis.between=[1,1]"], "analysis.between must be two different tasks from 1 to 3"),
        (["analysis=landscape", "analysis.between=[1,4]"], "analysis.between must be two different tasks from 1 to 3"),
        (["analysis=distribution", "analysis.bins=1"], "analysis.bins must be a whole number, between 2 and 100000"),
        (["analysis=cosine", "method=zeroshot"], "an analysis needs trained encoders"),
        (["analysis=landscape", "method=joint"], "this analysis compares encoders"),
        (["analysis=sign_conflicts", "method=joint"], "this analysis compares encoders"),
        (["analysis=nothing"], "analysis must be one of"),
        (["analysis=null"], "group override must be a string"),
        (["analysis=cosine", "+analysis.more=1"], "does not fit its config"),
        (["analysis=per_task", "lambda=[0.1,0.2]"], "lambda must be a number"),
        (["seed=77"], "does not exist. Type: python train.py"),
    ],
)
def test_bad_input(overrides, message, root):
    before = sorted(root.rglob("*"))
    outcome = command("analyze.py", f"root={root}", "tasks=3", *overrides)
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert message in outcome.err
    assert sorted(root.rglob("*")) == before
