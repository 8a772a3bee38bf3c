"""merge.py on a run with a calibration, weights, depth and patterns: what it writes, evaluates, selects and refuses."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers import command
from references import CALIBRATIONS
from safetensors import safe_open
from safetensors.torch import load_file

from mergestream.merging import accumulate
from mergestream.runtime import files


@pytest.fixture
def merge(root, words):
    """Merge the run of the copied root; returns the outcome."""
    return lambda *overrides: command("merge.py", f"root={root}", *words, *overrides)


@pytest.fixture
def folder(root, run_at):
    """The merges of the sequential run."""
    return run_at(root).path / "merges"


def vectors_of(root, run):
    base = load_file(next((root / "_base").iterdir()))
    thetas = [load_file(path) for path in run.encoders()]
    return base, {name: torch.stack([(theta[name] - base[name]).double() for theta in thetas]) for name in base}


def merged(folder, name, base):
    return {
        key: tensor.double() - base[key].double()
        for key, tensor in load_file(folder / name / "merged.safetensors").items()
    }


def failed(outcome):
    """The one line of a command that failed."""
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    return line


def test_a_calibrated_merge_has_a_folder_and_a_record_of_its_own(merge, folder, root, run_at):
    outcome = merge("strategy=average", "calibration=svc", "lambda=[0.5,1]")
    assert outcome.code == 0, outcome.err
    assert "average, λ = 0.5, svc with alpha = 0.1, coefficient = 1" in outcome.out
    assert merge("strategy=average").code == 0
    names = ["average-1", "average-calibration=svc-0.5", "average-calibration=svc-1"]
    assert sorted(path.name for path in folder.iterdir()) == names
    base, taus = vectors_of(root, run_at(root))
    expected = CALIBRATIONS["svc"]({name: tau.mean(0) for name, tau in taus.items()}, taus, 0.1, 1.0)
    for name, tau in merged(folder, names[1], base).items():
        assert (tau - 0.5 * expected[name]).norm() <= 2e-2 * (0.5 * expected[name]).norm() + 1e-6, name
    metrics = files.read_json(folder / names[1] / "metrics.json")
    record = {"name": "svc", "alpha": 0.1, "coefficient": 1.0}
    assert metrics["merge"]["calibration"] == record
    assert metrics["merge"]["changed"] == {"calibration": "svc"}
    assert metrics["calibration"].keys() == {"bins", "ece", "temperature", "ece_with_temperature"}  # of probabilities
    with safe_open(folder / names[1] / "merged.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["calibration"]) == record
    plain = files.read_json(folder / names[0] / "metrics.json")
    assert plain["merge"] == {"strategy": "average", "scale": 1.0, "options": {}, "changed": {}}
    assert "already merged" in merge("strategy=average", "calibration=svc", "lambda=0.5").out
    out = command("report.py", f"root={root}").out
    assert "seq + average, svc" in out


def test_prefixes_of_adjusted_merges_are_merges_of_fewer_tasks(merge, folder, root, run_at, monkeypatch):
    monkeypatch.setattr(accumulate.Accumulation, "add", lambda *_: pytest.fail("a running merge has no calibration"))
    words = ("strategy=magmax", "calibration=lines", "calibration.beta=0.5", "weights=[1,0.5,2]", "prefixes=true")
    outcome = merge(*words)
    assert outcome.code == 0, outcome.err
    (path,) = folder.iterdir()
    assert path.name == "magmax-calibration=lines-calibration.beta=0.5-weights=[1.0,0.5,2.0]-1"
    assert len(files.read_json(path / "metrics.json")["overall"]) == 3


def test_weights_depth_and_patterns(merge, folder, root, run_at):
    words = ("strategy=average", "weights=[3,0,0]", "depth=[1,0]", "include=[transformer.*]", "exclude=[*.ln_*]")
    outcome = merge(*words)
    assert outcome.code == 0, outcome.err
    (path,) = folder.iterdir()
    base, taus = vectors_of(root, run_at(root))
    for name, tau in merged(folder, path.name, base).items():
        inside = name.startswith("transformer.") and ".ln_" not in name
        factor = 1 - int(name.split(".")[2]) / 3 if inside else 0
        torch.testing.assert_close(tau, factor * taus[name][0], rtol=0, atol=1e-6)
    changed = files.read_json(path / "metrics.json")["merge"]["changed"]
    assert changed == {
        "weights": [3.0, 0.0, 0.0],
        "depth": [1.0, 0.0],
        "include": ["transformer.*"],
        "exclude": ["*.ln_*"],
    }


def test_a_calibrated_merge_is_found_by_its_values(merge, root, words):
    assert merge("calibration=svc", "exclude=[*.ln_*]").code == 0
    (pictures,) = (word.removeprefix("dataset.path=") for word in words if word.startswith("dataset.path="))
    predict = ("predict.py", f"root={root}", *words, f"images={pictures}/test/one")
    outcome = command(*predict, "calibration=svc", "exclude=[*.ln_*]")
    assert outcome.code == 0, outcome.err
    line = failed(command(*predict, "calibration=svc"))
    assert "merges/magmax-calibration=svc-1 does not exist" in line
    assert "calibration=svc" in line.partition("Type: ")[2]


def test_an_analysis_merges_with_the_calibration(root, words, run_at):
    analyze = ("analyze.py", f"root={root}", *words, "analysis=per_task", "lambda=1")
    for extra in ((), ("calibration=svc",)):
        outcome = command(*analyze, *extra)
        assert outcome.code == 0, outcome.err
        assert "has no effect" not in outcome.out
    tables = {path.name: path.read_bytes() for path in (run_at(root).path / "analyses").glob("*.csv")}
    assert sorted(tables) == ["per_task-calibration=svc-lambda=1.csv", "per_task-lambda=1.csv"]
    assert "give a number here" in failed(command(*analyze, "calibration=lines"))


@pytest.fixture(scope="module")
def validated(tmp_path_factory, words):
    """A root with a run that was trained without its validation data. Not to be changed."""
    root = tmp_path_factory.mktemp("validated")
    assert command("train.py", f"root={root}", *words, "stream.validation=0.2").code == 0
    return root


def test_beta_is_selected_on_validation_data(validated, words, tmp_path):
    shutil.copytree(validated, tmp_path / "selected")
    arguments = (f"root={tmp_path}/selected", *words, "stream.validation=0.2", "strategy=average", "calibration=lines")
    chosen = (*arguments, "candidates=[2,0,1]")
    outcome = command("merge.py", *chosen)
    assert outcome.code == 0, outcome.err
    merges = next((tmp_path / "selected").rglob("config.yaml")).parent / "merges"
    metrics = files.read_json(merges / "average-calibration=lines-1/metrics.json")
    found = metrics["merge"]
    tried = {item["calibration.beta"]: item["accuracy"] for item in found["validation"]}
    assert list(tried) == [0, 1, 2]
    beta = found["calibration"]["beta"]
    assert beta == max(tried, key=lambda value: (tried[value], -value))
    assert found["calibration"] == {"name": "lines", "beta": beta, "selected_on": "validation"}
    assert found["changed"] == {"calibration": "lines"}  # the rule: of several seeds, each may have a number of its own
    assert "selected_on" not in found
    assert f"lines with beta = {beta:g} (chosen on validation data)" in outcome.out
    assert command("merge.py", *arguments, f"calibration.beta={beta:g}").code == 0
    (single,) = merges.glob(f"average-calibration=lines-calibration.beta={beta:g}-1")
    given = files.read_json(single / "metrics.json")
    assert given["overall"] == metrics["overall"]
    assert given["calibration"] == metrics["calibration"]  # the temperature is that of the chosen merge
    bits = [load_file(path / "merged.safetensors") for path in (single, merges / "average-calibration=lines-1")]
    assert all(torch.equal(bits[0][name], bits[1][name]) for name in bits[0])
    assert "already merged" in command("merge.py", *chosen).out
    assert "already merged" not in command("merge.py", *arguments, "candidates=[0,1]").out


def test_lambda_is_selected_for_a_calibrated_merge(validated, words, tmp_path):
    shutil.copytree(validated, tmp_path / "selected")
    arguments = (f"root={tmp_path}/selected", *words, "stream.validation=0.2", "strategy=average", "calibration=svc")
    outcome = command("merge.py", *arguments, "lambda=select", "candidates=[0.5,1]")
    assert outcome.code == 0, outcome.err
    (path,) = (tmp_path / "selected").rglob("average-calibration=svc-select/metrics.json")
    made = files.read_json(path)["merge"]
    assert [item["lambda"] for item in made["validation"]] == [0.5, 1]
    assert (made["selected_on"], made["calibration"]["alpha"]) == ("validation", 0.1)


WRONG = [
    (["calibration=svc", "calibration.alpha=0"], "calibration.alpha must be a number, positive"),
    (["calibration=svc", "strategy.scale=0.2"], "got strategy.scale=0.2 with calibration=svc. Write lambda=0.2"),
    (["calibration=lines", "calibration.beta=-1"], "calibration.beta must be a number, 0 or more, or select"),
    (["calibration=lines"], "calibration.beta=select needs validation data"),
    (["calibration=lines", "lambda=select"], "calibration.beta=select chooses beta for one λ; got lambda=select"),
    (["calibration=lines", "lambda=[0.5,1]"], "calibration.beta=select chooses beta for one λ; got lambda=[0.5, 1]"),
    (["calibration=lines", "candidates=[-1,1]"], "candidates must be a list of numbers, 0 or more"),
    (
        ["calibration=svc", "calibration._target_=mergestream.strategies.magmax.magmax"],
        "calibration._target_ must be a function",
    ),
    (["+calibration.scale=2"], "calibration=none takes no options; got calibration.scale=2"),
    (["calibration=svc", "calibration.scale=a"], "calibration.scale must be a number, finite; got calibration.scale=a"),
    (["weights=[1,2]"], "weights must be 3 numbers, one for each task; got 2"),
    (["weights=3"], "weights must be a list of 1 or more finite numbers, such as [1,0.5], or null; got weights=3"),
    (["depth=[1]"], "depth must be a list of 2 or more finite numbers"),
    (["depth=[1,nan]"], "depth must be a list of 2 or more finite numbers"),
    (
        ["include=attn"],
        "include must be a list of patterns of names, such as [*attn*,*bias], or null; got include=attn",
    ),
    (["exclude=[]"], "exclude must be a list of patterns of names"),
    (["exclude=[nope]"], "exclude must match names of weights, such as"),
    (["strategy=weighted_average", "weights=[1,2,3]"], "Write strategy.weights=[1.0, 2.0, 3.0]"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG)
def test_wrong_values_are_one_line(overrides, message, merge, folder):
    assert message in failed(merge(*overrides))
    assert not folder.exists()


def test_wrong_values_of_files(tmp_path):
    given = ["base=B.safetensors", "checkpoints=[A.safetensors,C.safetensors]", f"out={tmp_path}/M.safetensors"]
    for overrides, message in (
        (["weights=[1]"], "weights must be 2 numbers, one for each of the checkpoints; got 1"),
        (["calibration=lines"], "give a number here"),
    ):
        assert message in failed(command("merge.py", *given, *overrides))


def test_what_a_training_keeps_has_no_adjustments(words, tmp_path):
    """A calibration needs the encoders of all tasks, which a merge that runs along with the training does not have."""
    trained = ("train.py", f"root={tmp_path}", *words, "merge_every_task=true", "keep_tasks=false")
    assert "Could not override 'calibration'" in failed(command(*trained, "calibration=svc"))
    assert "calibration is for merge.py, which has the" in failed(command(*trained, "+calibration=svc"))
    assert "unknown key: +depth=[1,2]" in failed(command(*trained, "+depth=[1,2]"))
    assert not any(tmp_path.iterdir())
    assert command(*trained).code == 0
    for words_of, key in ((["calibration=svc"], "calibration"), (["depth=[1,0.5]"], "depth")):
        line = failed(command("merge.py", f"root={tmp_path}", *words, *words_of))
        assert f"{key} needs the encoder of each task; this run was trained with keep_tasks=false" in line
