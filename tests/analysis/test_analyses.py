"""The numbers of each analysis against a small case done by hand."""

from __future__ import annotations

import math

import pytest
import torch
from made_up import INSIDE, OUTSIDE, TAUS, subject_of

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
from mergestream.analysis.subject import Subject
from mergestream.display.plots import render
from mergestream.metrics import Row
from mergestream.runtime import files
from mergestream.runtime.errors import UserError
from mergestream.runtime.seeding import key
from mergestream.strategies.magmax import magmax


def measured(monkeypatch, value):
    """Let the accuracy of θ₀ + τ be a function of the five elements of τ."""

    def accuracy(self, tau, scale=1.0, only=None):
        found = value(scale * torch.cat([tau[INSIDE], tau[OUTSIDE]]) if tau else torch.zeros(5))
        return Row([found] * 3, [found / 2] * 3, found, None)

    monkeypatch.setattr(Subject, "accuracy", accuracy)


def test_layers(subject):
    frame, _ = layers(subject)
    found = {(row.weight, row.task): row.mean_magnitude for row in frame.itertuples()}
    assert found == pytest.approx(
        {(INSIDE, 1): 4 / 3, (INSIDE, 2): 5 / 3, (INSIDE, 3): 5 / 3}
        | {(OUTSIDE, 1): 3.5, (OUTSIDE, 2): 2.5, (OUTSIDE, 3): 4.0}
    )
    assert set(frame["kind"]) == {"mlp.c_fc.weight", "proj"}
    assert frame[frame["weight"] == INSIDE]["block"].tolist() == [0, 0, 0]  # the only block of the file
    assert frame[frame["weight"] == OUTSIDE]["block"].isna().all()


def test_contribution(subject):
    # |3| and |−3|: the later, so task 2; |−4|; zeros: none; |2| and |−2|: task 3; 6.
    frame, figure = contribution(subject)
    won = {(row.weight, row.task): row.won for row in frame.itertuples()}
    assert won == {(INSIDE, 1): 0, (INSIDE, 2): 1, (INSIDE, 3): 1, (OUTSIDE, 1): 0, (OUTSIDE, 2): 0, (OUTSIDE, 3): 2}
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx([0, 20, 60])  # per cent of five


def test_cosine(subject):
    frame, _ = cosine(subject)
    found = {(row.a, row.b): row.cosine for row in frame.itertuples()}
    assert found[1, 2] == pytest.approx((-9 + 2 + 2 + 20) / math.sqrt(39 * 30))
    assert found[2, 1] == found[1, 2]
    assert found[1, 3] == pytest.approx((3 + 4 - 4 + 30) / math.sqrt(39 * 57))
    assert [found[t, t] for t in (1, 2, 3)] == pytest.approx([1, 1, 1])


def test_cosine_with_a_zero_task_vector_is_undefined(tmp_path):
    frame, _ = cosine(subject_of(tmp_path, [TAUS[0], [0.0] * 5]))
    assert frame["cosine"].isna().tolist() == [False, True, True, True]


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
    assert frame["tasks"].tolist() == [2, 3]
    assert frame["conflicting"].tolist() == [1, 2]
    assert frame["surviving"].tolist() == [4, 4]
    assert frame["share"].tolist() == pytest.approx([1 / 5, 2 / 5])
    assert frame["share_of_surviving"].tolist() == pytest.approx([1 / 4, 1 / 2])


def test_sign_conflicts_after_trimming(subject):
    frame, _ = sign_conflicts(subject, density=0.4, methods=["ind"])
    # The published trimming keeps one more than two of five: 3, 2, 5; −3, −2, 4; −4, −2, 6.
    assert frame["conflicting"].tolist() == [1, 2]
    assert frame["surviving"].tolist() == [2, 4]


def test_sign_conflicts_of_several_seeds(subject, tmp_path):
    """In the other order, two of five parameters conflict after two tasks and after three."""
    subject_of(tmp_path, TAUS[::-1], "method=ind", "seed=1")
    frame, figure = sign_conflicts(subject, density=1.0, methods=["ind"], seeds=[5, 1])
    assert frame[["seed", "tasks"]].to_numpy().tolist() == [[5, 2], [5, 3], [1, 2], [1, 3]]
    assert frame["share"].tolist() == pytest.approx([1 / 5, 2 / 5, 2 / 5, 2 / 5])
    (line,), (band,) = figure.axes[0].lines, figure.axes[0].collections
    assert line.get_ydata() == pytest.approx([30, 40])
    heights = band.get_paths()[0].vertices
    deviation = 100 * math.sqrt(2 * 0.1**2)
    assert sorted(set(heights[heights[:, 0] == 2, 1])) == pytest.approx([30 - deviation, 30 + deviation])


def test_sign_conflicts_of_two_methods(subject, tmp_path):
    subject_of(tmp_path, [TAUS[0]] * 3, "method=seq")
    frame, figure = sign_conflicts(subject, density=1.0)
    assert frame.groupby("method")["conflicting"].apply(list).to_dict() == {"ind": [1, 2], "seq": [0, 0]}
    assert [line.get_label() for line in figure.axes[0].lines] == ["ind", "seq"]


def test_consistency_of_independent_tasks(subject):
    frame, _ = consistency(subject, methods=["ind"])
    # Largest magnitudes 3, 4, 0, 2, 6; the same way: 2 (3, −3, 1), 3, 0, 2, 3 times.
    assert frame["consistent"].tolist() == [0, 2, 3]
    assert frame["parameters"].tolist() == [1, 2, 2]
    assert frame["share"].tolist() == pytest.approx([0.2, 0.4, 0.4])
    assert frame["mean_magnitude"].tolist() == pytest.approx([0, (3 + 2) / 2, (4 + 6) / 2])


def test_consistency_of_sequential_tasks(subject, tmp_path):
    subject_of(tmp_path, TAUS, "method=seq")
    frame, _ = consistency(subject, methods=["seq"])
    # Updates (3, −6, 4), (−1, −1, −2), 0, (2, −1, −3), (5, −1, 2).
    assert frame["consistent"].tolist() == [0, 2, 3]
    assert frame["parameters"].tolist() == [1, 3, 1]
    assert frame["mean_magnitude"].tolist() == pytest.approx([0, (3 + 2 + 6) / 3, 4])


def test_pruning(subject, monkeypatch):
    measured(monkeypatch, lambda tau: tau.abs().sum().item())
    frame, _ = pruning(subject, keep=[0.2, 0.4, 1.0])
    found = {(row.task, row.order, row.kept): row.task_agnostic for row in frame.itertuples()}
    assert [found[3, "highest", k] for k in (0.0, 0.2, 0.4, 1.0)] == [0, 6, 10, 13]
    assert [found[3, "lowest", k] for k in (0.0, 0.2, 0.4, 1.0)] == [0, 0, 1, 13]
    assert [found[1, "highest", k] for k in (0.2, 0.4, 1.0)] == [5, 8, 11]
    assert frame["task_aware"].tolist() == pytest.approx([x / 2 for x in frame["task_agnostic"]])
    # A larger random share keeps what a smaller one keeps.
    draws = []
    for name, size in ((INSIDE, 3), (OUTSIDE, 2)):
        generator = torch.Generator().manual_seed(key(subject.run.seed, "pruning", 2, name))
        draws.append(torch.rand(size, generator=generator))
    magnitudes, draw = torch.tensor(TAUS[2]).abs(), torch.cat(draws)
    for share in (0.2, 0.4, 1.0):
        assert found[3, "random", share] == magnitudes[draw < share].sum()
    assert 0 < found[3, "random", 0.4] < 13


def test_pruning_of_joint_training(tmp_path, monkeypatch):
    measured(monkeypatch, lambda tau: tau.abs().sum().item())
    subject = subject_of(tmp_path, TAUS[:1], "method=joint", "tasks=3")
    frame, _ = pruning(subject, keep=[0.2])
    assert set(frame["name"]) == {"all"}
    assert frame[frame["order"] == "highest"]["task_agnostic"].tolist() == [0, 5]


def test_interpolation(subject, monkeypatch):
    measured(monkeypatch, lambda tau: tau[4].item())
    frame, _ = interpolation(subject, strategy=magmax.bind({}), scales=[0.5, 0.0], steps=[0.0, 0.25], between=[1, 3])
    assert frame["line"].tolist() == ["magmax, λ"] * 2 + ["θ1 to θ3"] * 2
    assert frame["position"].tolist() == [0, 0.5, 0, 0.25]
    assert frame["overall"].tolist() == [0, 3, 5, 5.25]


def test_landscape(subject, monkeypatch):
    measured(monkeypatch, lambda tau: tau.square().sum().item())
    frame, _ = landscape(subject, grid=3, margin=0.0, between=[1, 2])
    # τ_2 along τ_1 is 15/39, across it √(30 − 15²/39)/√39; a point's squared length is 39 (x² + y²).
    models = frame.set_index("model").loc[["θ₀", "θ1", "θ2"]]
    assert models["x"].tolist() == pytest.approx([0, 1, 15 / 39])
    assert models["y"].tolist() == pytest.approx([0, 0, math.sqrt(30 - 15**2 / 39) / math.sqrt(39)])
    assert models["overall"].tolist() == pytest.approx([0, 39, 30], rel=1e-5)
    assert frame["overall"].tolist() == pytest.approx((39 * (frame["x"] ** 2 + frame["y"] ** 2)).tolist(), abs=1e-4)
    assert len(frame) == 9 + 3


def test_landscape_of_parallel_task_vectors(tmp_path):
    subject = subject_of(tmp_path, [TAUS[0], [2 * value for value in TAUS[0]]])
    with pytest.raises(UserError, match="analysis.between must be encoders that span a plane with θ₀"):
        landscape(subject)


def test_per_task(subject, monkeypatch):
    measured(monkeypatch, lambda tau: tau[1].item())
    frame, _ = per_task(subject, strategy=magmax.bind({}), scale=0.5)
    found = frame.groupby("model", sort=False)["task_agnostic"].first().to_dict()
    assert found == {"zero-shot": 0, "last task": -4, "magmax, λ = 0.5": -2}
    assert frame["name"].tolist() == ["task 1", "task 2", "task 3"] * 3


def test_per_task_of_joint_training(tmp_path, monkeypatch):
    measured(monkeypatch, lambda tau: tau[1].item())
    subject = subject_of(tmp_path, TAUS[:1], "method=joint", "tasks=3")
    frame, _ = per_task(subject, strategy=magmax.bind({}), scale=0.5)
    assert set(frame["model"]) == {"zero-shot", "joint", "magmax, λ = 0.5"}


@pytest.mark.parametrize("analyse", [consistency, contribution, cosine, distribution, layers, sign_conflicts])
def test_analyses_without_accuracy_hold_no_encoder(analyse, subject, monkeypatch):
    monkeypatch.setattr(files, "read_tensors", lambda path: pytest.fail(f"{path} was read as a whole"))
    options = {"methods": ["ind"]} if analyse in (consistency, sign_conflicts) else {}
    analyse(subject, **options)


def test_threads_do_not_change_a_figure(subject):
    """The threads of a histogram finish in any order."""
    frames, figures = zip(*(distribution(subject) for _ in range(3)), strict=True)
    assert all(frame.equals(frames[0]) for frame in frames)
    assert len({render(figure, "png") for figure in figures}) == 1
