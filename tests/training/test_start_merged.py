"""method=merged: every task starts from the merge of the tasks before it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from helpers import apart, command, config, cut_off_after, noise
from safetensors.torch import load_file

from mergestream.compose.run import run_of
from mergestream.merging.accumulate import RunningMerge
from mergestream.runs.directory import Run
from mergestream.runtime import files
from mergestream.training import task as steps

WORDS = (*noise(), "epochs=1", "method=merged")


def train(root: Path, *words: str) -> Run:
    outcome = command("train.py", f"root={root}", *WORDS, *words)
    assert outcome.code == 0, outcome.err
    return run_of(config("train", f"root={root}", *WORDS))


def contents(run: Run) -> dict[str, bytes]:
    return {str(p.relative_to(run.path)): p.read_bytes() for p in run.path.rglob("*.safetensors")}


@pytest.fixture(scope="module")
def ema(tmp_path_factory):
    """A run whose tasks start from the moving average. Not to be changed."""
    return train(tmp_path_factory.mktemp("ema"), "strategy=ema", "strategy.decay=0.7", "lambda=0.9")


def test_a_task_starts_from_the_merge_of_those_before(tmp_path, monkeypatch):
    starts, fit = [], steps.fit_task

    def recorded(learner, *arguments):
        starts.append({name: p.detach().double() for name, p in learner.encoder.state_dict().items()})
        fit(learner, *arguments)

    monkeypatch.setattr(steps, "fit_task", recorded)
    run = train(tmp_path, "strategy=ema", "strategy.decay=0.7", "lambda=0.9")
    base = load_file(run.base_file())
    for name, theta in base.items():
        theta, average = theta.double(), None
        assert torch.equal(starts[0][name], theta)
        for t in range(2):
            tau = load_file(run.encoder(t))[name].double() - theta
            average = tau if average is None else 0.7 * average + 0.3 * tau
            torch.testing.assert_close(starts[t + 1][name], theta + 0.9 * average, rtol=0, atol=1e-6)


def test_the_merge_is_that_of_merge_py(ema, tmp_path):
    words = (f"root={ema.root}", *WORDS, "strategy=ema", "strategy.decay=0.7", "lambda=0.9")
    folder = next(ema.path.glob("merges/ema-*"))
    kept, metrics = (folder / "merged.safetensors").read_bytes(), files.read_json(folder / "metrics.json", "overall")
    (folder / "metrics.json").unlink()
    outcome = command("merge.py", *words, "prefixes=true")
    assert outcome.code == 0, outcome.err
    assert load_file(folder / "merged.safetensors").keys() == load_file(ema.base_file()).keys()
    assert (folder / "merged.safetensors").read_bytes() == kept
    assert files.read_json(folder / "metrics.json", "overall")["overall"] == metrics["overall"]


@pytest.mark.parametrize("keep", ["true", "false"])
@pytest.mark.parametrize("place", ["add", "fit_task"])
def test_a_training_that_is_cut_off_ends_in_the_same_bytes(ema, tmp_path, keep, place):
    words = ("strategy=ema", "strategy.decay=0.7", "lambda=0.9", f"keep_tasks={keep}")
    holder = RunningMerge if place == "add" else steps
    with cut_off_after(holder, place, calls=2):
        train(tmp_path, *words)
    run, whole = train(tmp_path, *words), contents(ema)
    if keep == "false":
        whole = {name: content for name, content in whole.items() if name[:7] not in ("task-00", "task-01")}
    assert contents(run) == whole
    assert files.read_json(run.metrics, "overall")["overall"] == files.read_json(ema.metrics, "overall")["overall"]


def test_a_task_that_is_repaired_leaves_the_later_ones(ema, tmp_path, capsys):
    words = ("strategy=ema", "strategy.decay=0.7", "lambda=0.9")
    run = train(tmp_path, *words)
    untouched = run.encoder(2).stat().st_mtime_ns
    run.encoder(1).unlink()
    train(tmp_path, *words, "repair=true")
    assert contents(run) == contents(ema)
    assert run.encoder(2).stat().st_mtime_ns == untouched


def test_two_processes_train_as_one_does(ema, tmp_path):
    words = ("strategy=ema", "strategy.decay=0.7", "lambda=0.9", "devices=2", "accelerator=cpu")
    two = train(tmp_path, *words)
    assert apart(load_file(ema.encoder(2)), load_file(two.encoder(2)), load_file(two.base_file())) < 2e-3


def test_sequential_and_independent_fine_tuning_are_its_ends(tmp_path):
    """λ = 0 starts from θ₀, and an average that forgets all but the last task starts from it."""
    merged = train(tmp_path, "strategy=ema", "strategy.decay=0", "lambda=0")
    other = train(tmp_path / "last", "strategy=ema", "strategy.decay=0", "lambda=1")
    for method, run in (("ind", merged), ("seq", other)):
        words = (f"root={tmp_path}", *noise(), "epochs=1", f"method={method}")
        outcome = command("train.py", *words)
        assert outcome.code == 0, outcome.err
        plain = run_of(config("train", *words))
        for ours, theirs in zip(run.encoders(), plain.encoders(), strict=True):
            # θ₀ + (θ_t − θ₀) is θ_t up to rounding.
            assert apart(load_file(ours), load_file(theirs), load_file(run.base_file())) < 2e-3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("strategy=tsv",), "needs a strategy that can continue task by task: .*; strategy=tsv needs all task vectors"),
        (("method.data=all",), "method.start=merged needs a method with an encoder for each task"),
        (("lambda=select",), "lambda must be a finite number"),
        (("method.start=here",), "method.start must be one of previous, base, merged"),
    ],
)
def test_bad_input(tmp_path, words, expected):
    outcome = command("train.py", f"root={tmp_path}", *WORDS, *words)
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert re.search(expected, line), line
    assert not list(tmp_path.rglob("*.safetensors"))


def test_another_strategy_or_lambda_is_another_run(ema):
    for words in (("strategy=average",), ("strategy=ema", "strategy.decay=0.7", "lambda=0.8")):
        outcome = command("train.py", f"root={ema.root}", *WORDS, *words)
        assert outcome.code == 1
        assert "a run directory holds one config" in outcome.err
