"""analyze.py: the files it writes, and its errors."""

from __future__ import annotations

import re
import shutil

import made_up
import pandas as pd
import pytest
from helpers import ROOT, command, config
from made_up import TAUS
from PIL import Image

from mergestream.compose.run import run_of

NAMES = sorted(path.stem for path in (ROOT / "configs/analysis").glob("*.yaml"))
OPTIONS = {
    "landscape": ["analysis.grid=2"],
    "pruning": ["analysis.keep=[0.2]"],
    "interpolation": ["analysis.scales=[0,0.5]", "analysis.steps=[0,1]", "strategy=average"],
}


@pytest.fixture(scope="module")
def trained_root(trained, tmp_path_factory):
    """A copy of the trained runs, to which analyses are added."""
    return shutil.copytree(trained, tmp_path_factory.mktemp("analysed"), dirs_exist_ok=True)


@pytest.mark.parametrize("name", NAMES)
def test_every_analysis_of_a_trained_run(name, trained_root):
    options = OPTIONS.get(name, [])
    outcome = command("analyze.py", f"root={trained_root}", "tasks=3", f"analysis={name}", *options)
    assert outcome.code == 0, outcome.err
    folder = run_of(config("train", f"root={trained_root}", "tasks=3")).path / "analyses"
    stem = "-".join([name, *sorted(word.removeprefix("analysis.") for word in options)])
    with Image.open(folder / f"{stem}.png") as image:
        assert image.size[0] > 400
    assert (folder / f"{stem}.svg").read_text().startswith("<?xml")
    assert len(pd.read_csv(folder / f"{stem}.csv")) > 2


def test_accuracies_are_those_of_the_run(trained_root):
    run = run_of(config("train", f"root={trained_root}", "tasks=3"))

    def content():
        outcome = command("analyze.py", f"root={trained_root}", "tasks=3", "analysis=per_task", "lambda=0.25")
        assert outcome.code == 0, outcome.err
        stem = run.path / "analyses/per_task-lambda=0.25"
        return [stem.with_name(f"{stem.name}.{kind}").read_bytes() for kind in ("csv", "png", "svg")]

    first = content()
    metrics, frame = run.result(), pd.read_csv(run.path / "analyses/per_task-lambda=0.25.csv")
    last = frame[frame["model"] == "last task"]
    assert last["task_agnostic"].tolist() == pytest.approx(metrics["accuracy"]["task_agnostic"][-1], abs=0.005)
    zero_shot = frame[frame["model"] == "zero-shot"]
    assert zero_shot["task_aware"].tolist() == pytest.approx(metrics["zero_shot"]["task_aware"])
    assert content() == first


def test_the_classes_of_the_run(trained_root):
    run = run_of(config("train", f"root={trained_root}", "tasks=3"))
    outcome = command("analyze.py", f"root={trained_root}", "tasks=3", "analysis=confusion", "lambda=0")
    assert outcome.code == 0, outcome.err
    frame, single = pd.read_csv(run.path / "analyses/confusion-lambda=0.csv"), run.result()["per_class"]
    assert frame["model"].unique().tolist() == ["zero-shot", "last task", "magmax, λ = 0"]
    assert frame["class"].tolist() == 3 * run.stream()["class_order"]
    last = frame[frame["model"] == "last task"].sort_values("class")
    assert last["name"].tolist() == ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    assert last["images"].tolist() == single["total"]
    assert last["correct"].tolist() == pytest.approx(single["correct"], abs=1)  # θ₀ + τ rounds
    assert last["accuracy"].tolist() == pytest.approx(last["correct"] / last["images"])
    predicted = last[[f"predicted {c}" for c in range(10)]].to_numpy()
    assert predicted.sum(1).tolist() == single["total"]
    assert predicted.diagonal().tolist() == last["correct"].tolist()
    one, _, three = (part.drop(columns="model").to_numpy().tolist() for _, part in frame.groupby("model", sort=False))
    assert one == three  # λ = 0 is θ₀


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with made-up runs of 3 tasks, of every method."""
    root = tmp_path_factory.mktemp("made-up")
    for method, taus in (("seq", TAUS), ("ind", TAUS), ("joint", TAUS[:1]), ("zeroshot", [])):
        made_up.run(root, taus, "tasks=3", f"method={method}")
    return root


def test_a_strategy_without_effect_is_not_in_the_file_name(root):
    outcome = command("analyze.py", f"root={root}", "tasks=3", "analysis=cosine", "strategy=ties", "lambda=0.3")
    assert outcome.code == 0, outcome.err
    assert "strategy=ties has no effect: analysis=cosine does not use strategy" in outcome.out
    assert "lambda=0.3 has no effect: analysis=cosine does not use lambda" in outcome.out
    folder = run_of(config("train", f"root={root}", "tasks=3")).path / "analyses"
    assert [path.name for path in folder.glob("cosine*.csv")] == ["cosine.csv"]


def test_seeds_of_two_methods(tmp_path):
    for seed in (1, 2):
        made_up.run(tmp_path, TAUS[::-1] if seed == 2 else TAUS, f"seed={seed}", "method=seq")
        made_up.run(tmp_path, [TAUS[seed]] * 3, f"seed={seed}", "method=ind", "epochs=7")
    arguments = [f"root={tmp_path}", "tasks=3", "seed=1", "analysis=sign_conflicts", "analysis.density=1"]
    outcome = command("analyze.py", *arguments, "analysis.seeds=[1,2]")
    assert outcome.code == 0, outcome.err
    (csv,) = tmp_path.rglob("sign_conflicts-density=1-seeds=*.csv")
    frame = pd.read_csv(csv).set_index(["method", "seed", "tasks"])["conflicting"]
    assert frame.loc["seq"].to_dict() == {(1, 2): 1, (1, 3): 2, (2, 2): 2, (2, 3): 2}
    assert frame.loc["ind (epochs=7)"].to_dict() == dict.fromkeys([(1, 2), (1, 3), (2, 2), (2, 3)], 0)


def test_long_options_are_hashed_in_the_file_name(root, monkeypatch):
    monkeypatch.setattr("mergestream.analysis.run.NAME_LENGTH", 5)
    arguments = [f"root={root}", "tasks=3", "analysis=distribution", "analysis.bins=12"]
    assert command("analyze.py", *arguments).code == 0
    folder = run_of(config("train", f"root={root}", "tasks=3")).path / "analyses"
    (csv,) = folder.glob("distribution-*.csv")
    assert re.fullmatch(r"distribution-[0-9a-f]{16}", csv.stem)


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
        (["analysis=distribution", "analysis.bins=1"], "analysis.bins must be a whole number, between 2 and 100000"),
        (["analysis=cosine", "method=zeroshot"], "an analysis needs trained encoders"),
        (["analysis=landscape", "method=joint"], "this analysis compares encoders"),
        (["analysis=sign_conflicts", "method=joint"], "this analysis compares encoders"),
        (["analysis=nothing"], "analysis must be one of"),
        (["analysis=null"], "group override must be a string"),
        (["analysis=cosine", "+analysis.more=1"], "does not fit its config"),
        (["analysis=per_task", "lambda=[0.1,0.2]"], "lambda must be a number"),
        (["seed=77"], "does not exist. Type: python train.py"),
        (["analysis=cosine", "epochs=7"], "a run directory holds one config"),
    ],
)
def test_bad_input(overrides, message, root):
    before = sorted(root.rglob("*"))
    outcome = command("analyze.py", f"root={root}", "tasks=3", *overrides)
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert message in outcome.err
    assert sorted(root.rglob("*")) == before
