"""The runs to compare, and the encoders of a run."""

from __future__ import annotations

import re

import pytest
from made_up import TAUS, subject_of

from mergestream.analysis.per_task import per_task
from mergestream.analysis.pruning import pruning
from mergestream.analysis.subject import Subject
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.strategies.magmax import magmax


def refuses(message):
    return pytest.raises(UserError, match=re.escape(message))


def test_methods_are_runs_beside_this_one(subject, tmp_path):
    subject_of(tmp_path, TAUS, "method=seq")
    found = subject.with_methods(["seq", "ind"])
    assert list(found) == ["seq", "ind"]
    assert [other.run.path.parent.name for other in found.values()] == ["seq", "ind"]
    assert found["seq"].method.start == "previous"


def test_labels_say_what_else_differs(subject, tmp_path):
    subject_of(tmp_path, TAUS, "method=seq", "epochs=7", "optimizer.lr=0.1")
    assert list(subject.with_methods(["ind", "seq"])) == ["ind", "seq (epochs=7, optimizer.lr=0.1)"]


@pytest.mark.parametrize("file", ["stream.json", "base.json"])
def test_methods_with_other_data_or_weights_are_not_compared(file, subject, tmp_path):
    path = subject_of(tmp_path, TAUS, "method=seq").run.path / file
    files.write_json(path, {**files.read_json(path), "tasks": [], "sha256": "0" * 64})
    with refuses("runs that are compared need the same θ₀ and data"):
        subject.with_methods(["seq"])


def test_seeds_are_runs_that_agree_in_all_else(subject, tmp_path):
    assert subject.with_seeds(None) == {5: subject}
    subject_of(tmp_path, TAUS, "method=ind", "seed=1")
    subject_of(tmp_path, TAUS, "method=ind", "seed=2", "epochs=3")
    found = subject.with_seeds([5, 1])
    assert [other.run.path.name for other in found.values()] == ["seed-5", "seed-1"]
    with refuses("runs of several seeds must agree in all other values; ") as error:
        subject.with_seeds([1, 2])
    assert "seed-2 has epochs=3. Leave seed 2 out of analysis.seeds" in str(error.value)
    with refuses("a finished run is needed") as error:
        subject.with_seeds([1, 9])
    assert "method=ind model=tiny seed=9" in str(error.value)


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        (3, "analysis.seeds must be a list of seeds"),
        ([], "analysis.seeds must be a list of seeds"),
        (["a"], "analysis.seeds must be a whole number"),
    ],
)
def test_bad_seeds(seeds, message, subject):
    with refuses(message):
        subject.with_seeds(seeds)


@pytest.mark.parametrize(
    "analyse", [Subject.vectors, pruning, lambda s: per_task(s, strategy=magmax.bind({}), scale=1)]
)
def test_a_missing_encoder_is_an_error(analyse, subject):
    subject.run.encoder(2).unlink()
    with refuses("task-02"):
        analyse(subject)


def test_runs_without_all_encoders_are_refused(subject):
    subject.run.drop(0)
    with refuses("was trained with keep_tasks=false. Train another run with keep_tasks=true tag=NAME"):
        subject.vectors()


def test_pair_of_tasks(subject):
    assert subject.pair(None) == (1, 3)
    assert subject.pair([3, 2]) == (3, 2)
    for between in ([1, 1], [1, 4], [0, 1], [1], [1, 2, 3], [1, 2.0], [True, 2], "12", 5):
        with refuses("analysis.between must be two different tasks from 1 to 3, such as [1,3]"):
            subject.pair(between)
