"""Means, intervals and tests over seeds."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from made_up import line

from mergestream.reporting.rows import is_borrowed, row_names
from mergestream.reporting.statistics import aggregate, borrow_bounds, compare, without_baseline


def test_means_and_intervals_by_hand():
    runs = pd.DataFrame([line(seed=s, final_accuracy=a) for s, a in ((3, 0.5), (1, 0.7), (2, 0.9))])
    runs.loc[0, "forgetting"] = 0.25
    (row,) = aggregate(runs).to_dict("records")
    assert (row["n"], row["seeds"], row["final_accuracies"]) == (3, "1 2 3", "0.7 0.9 0.5")
    assert row["final_accuracy"] == pytest.approx(0.7)
    assert row["final_accuracy_std"] == pytest.approx(0.2)  # √((0.04 + 0 + 0.04) / 2)
    assert row["final_accuracy_ci95"] == pytest.approx(4.302653 * 0.2 / math.sqrt(3))  # t of 2 degrees of freedom
    assert row["forgetting"] == 0.25  # of the one seed that has it
    assert math.isnan(row["forgetting_std"])
    assert math.isnan(row["forgetting_ci95"])
    assert math.isnan(row["bwt"])


def test_paired_tests_by_hand():
    accuracies = {"seq": (0.5, 0.6, 0.7), "ind": (0.6, 0.8, 0.7), "ewc": (0.6, 0.7, 0.83), "lwf": (0.6, 0.7, 0.8)}
    runs = pd.DataFrame(
        [line(method=m, seed=s, final_accuracy=a) for m, values in accuracies.items() for s, a in enumerate(values)]
    )
    runs = pd.concat([runs, pd.DataFrame([line(method="joint", seed=7, final_accuracy=1.0)])], ignore_index=True)
    table = compare(runs, aggregate(runs), "sequential, last task").set_index("method")
    # With two degrees of freedom the two-sided p of t is 1 − t / √(2 + t²).
    # ind: differences 0.1, 0.2, 0, mean 0.1, deviation 0.1, t = √3; ewc: 0.1, 0.1, 0.13, t = 0.11 / (0.03 / 3) = 11
    assert table.loc["ind", "minus_baseline"] == pytest.approx(0.1)
    assert table.loc["ind", "p"] == pytest.approx(1 - math.sqrt(3 / 5))
    assert table.loc["ewc", "p"] == pytest.approx(2 * (1 - 11 / math.sqrt(123)))  # Holm: the smaller of two, times two
    assert math.isnan(table.loc["lwf", "p"])  # always 0.1 better, so no deviation to test with
    assert table.loc["lwf", "minus_baseline"] == pytest.approx(0.1)
    assert table.loc["joint", "pairs"] == 0  # another seed
    assert math.isnan(table.loc["joint", "p"])
    assert math.isnan(table.loc["seq", "p"])


def test_only_seeds_with_the_same_data_are_pairs():
    def of(method, *data, gain=0.0):
        return [line(method=method, seed=s, data=d, final_accuracy=0.5 + gain * s) for s, d in enumerate(data)]

    runs = pd.DataFrame([*of("seq", "a", "b", "c"), *of("ind", "a", "other", "c", gain=0.1), *of("joint", "", "", "")])
    table = compare(runs, aggregate(runs), "sequential, last task").set_index("method")
    assert table.loc["ind", "pairs"] == 2
    assert table.loc["ind", "minus_baseline"] == pytest.approx(0.1)  # of 0 and 0.2
    assert table.loc["joint", "pairs"] == 3  # whose accuracy over all classes does not depend on their order


def test_a_borrowed_bound_can_be_the_baseline():
    lines = [line(method="joint", tasks=5, seed=s, data=f"five {s}", final_accuracy=0.9) for s in (1, 2)]
    lines += [line(tasks=9, seed=s, data=f"nine {s}", final_accuracy=0.4 + 0.1 * s) for s in (1, 2)]
    runs = borrow_bounds(pd.DataFrame(lines))
    found = compare(runs, aggregate(runs), "Joint").set_index(["method", "tasks"]).loc[("seq", 9)]
    assert found["pairs"] == 2
    assert found["minus_baseline"] == pytest.approx(-0.35)
    assert found["p"] == pytest.approx(2 * math.atan2(1, 7) / math.pi)  # one degree of freedom: t = −0.35 / 0.05


def test_the_baseline_is_magmax_with_its_published_scale():
    def rows(tasks, *scales):
        magmax = [line(tasks=tasks, strategy="magmax", scale=scale, final_accuracy=0.5) for scale in scales]
        return [*magmax, line(tasks=tasks, final_accuracy=0.7, seed=1), line(tasks=tasks, final_accuracy=0.1, seed=2)]

    runs = pd.DataFrame([*rows(2, "0.3"), *rows(5, "0.3", "0.5"), *rows(9, "0.3", "0.4")])
    runs["name"] = row_names(runs)
    table = compare(runs, aggregate(runs))
    found = table[table["strategy"] == ""].set_index("tasks")
    assert found["baseline"].tolist() == ["MagMax, λ = 0.3", "MagMax, λ = 0.5", ""]
    assert found["minus_baseline"].tolist()[:2] == pytest.approx([0.2, 0.2])  # of the seed that both have
    assert found["pairs"].tolist() == [1, 1, 0]
    assert without_baseline(table) == ["digits, class-incremental, 9 tasks, tiny"]
    assert found["p"].isna().all()


def test_every_number_of_tasks_has_bounds():
    lines = [line(method="joint", tasks=5, final_accuracy=0.9, forgetting=0.1, seed=s) for s in (1, 2)]
    lines += [line(tasks=tasks, final_accuracy=0.5) for tasks in (5, 10)]
    lines += [line(method="joint", stream="domain", final_accuracy=0.8), line(stream="domain", tasks=3)]
    table = aggregate(borrow_bounds(pd.DataFrame(lines)))
    joint = table[table["method"] == "joint"].set_index(["stream", "tasks"])
    assert set(joint.index) == {("class", 5), ("class", 10), ("domain", 2)}
    assert joint.loc[("class", 10), ["final_accuracy", "n", "trained_tasks"]].tolist() == [0.9, 2, 5]
    assert not is_borrowed(joint.reset_index().iloc[0])
    assert math.isnan(joint.loc[("class", 10), "forgetting"])


def test_bounds_of_other_data_are_neither_borrowed_nor_compared():
    lines = [line(method="joint", tasks=5, data="A", source="a", seed=s, final_accuracy=0.9 + 0.01 * s) for s in (1, 2)]
    lines += [line(tasks=tasks, source=source, seed=s) for tasks, source in ((9, "b"), (7, "a")) for s in (1, 2)]
    lines += [line(tasks=5, source="b", seed=s, final_accuracy=0.5) for s in (1, 2)]
    runs = borrow_bounds(pd.DataFrame(lines))
    table = compare(runs, aggregate(runs), "sequential, last task").set_index(["method", "tasks"])
    assert sorted(table.loc["joint"].index) == [5, 7]
    assert table.loc[("joint", 5), "pairs"] == 0


def test_bounds_are_borrowed_from_one_number_of_tasks():
    lines = [line(method="joint", tasks=5, final_accuracy=0.9, seed=seed) for seed in (1, 2)]
    lines += [line(method="joint", tasks=10, final_accuracy=0.6, seed=3), line(tasks=20)]
    table = aggregate(borrow_bounds(pd.DataFrame(lines))).set_index(["method", "tasks"])
    assert table.loc[("joint", 20), ["final_accuracy", "seeds"]].tolist() == [0.9, "1 2"]
    assert table.loc[("joint", 10), ["final_accuracy", "seeds"]].tolist() == [0.6, "3"]
