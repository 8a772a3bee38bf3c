"""How the embedded benchmark's hyper-parameters are chosen, on accuracies made up by hand."""

from __future__ import annotations

import importlib.util
import itertools
import sys

import pandas as pd
import pytest
import yaml
from helpers import ROOT
from made_up import write

from mergestream.runtime import files


@pytest.fixture(scope="module")
def tune():
    spec = importlib.util.spec_from_file_location("tune", ROOT / "benchmarks/tune.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclass looks for it
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def results(tune):
    """Every configuration at 0.5 for λ 0.3 and at 0.4 for λ 0.5, but for what the tests look for."""
    lines = []
    for stream in tune.STREAMS:
        for method, grid in tune.BUDGET.items():
            for rate in grid["optimizer.lr"]:
                for strength in grid.get("method.strength", [""]):
                    line = {"stream": stream, "method": method, "optimizer.lr": rate, "method.strength": strength}
                    for strategy in [*tune.MERGED.get(method, []), *([""] if method != "ind" else [])]:
                        lines += [
                            {**line, "seed": seed, "strategy": strategy, "value": x, "accuracy": 0.8 - x}
                            for x in (0.5, 0.3)
                            for seed in tune.SEEDS
                        ]
    frame = pd.DataFrame(lines)

    def better(gain, **where):
        rows = (frame[list(where)] == pd.Series(where)).all(axis=1)
        assert rows.any()
        frame.loc[rows, "accuracy"] += gain

    frame.better = better
    return frame


def test_the_best_configuration_wins(tune, results):
    results.better(0.1, method="ewc", strategy="", **{"optimizer.lr": "0.0001", "method.strength": "1000000.0"})
    for strategy in ("", "magmax"):
        results.better(
            0.06, method="ewc", strategy=strategy, **{"optimizer.lr": "0.0003", "method.strength": "1000000.0"}
        )
    results.better(0.1, method="joint", strategy="", **{"optimizer.lr": "0.001"})
    chosen = tune.choose_training(results)
    assert tuple(chosen.loc[("digits_5", "ewc"), tune.CONFIGURATION]) == ("0.0003", "1000000.0")
    assert chosen.loc[("digits_5", "joint"), "optimizer.lr"] == "0.001"


def test_training_is_chosen_for_merges_and_without_one(tune, results):
    results.better(0.3, method="seq", strategy="", **{"optimizer.lr": "3e-05"})
    results.better(0.3, method="seq", strategy="wudi", **{"optimizer.lr": "0.001"})  # no judge
    for strategy in tune.JUDGES["seq"][1:]:
        results.better(0.1, method="seq", strategy=strategy, **{"optimizer.lr": "0.0006"})
    chosen = tune.choose_training(results)
    assert chosen.loc[("glyphs_10", "seq"), "optimizer.lr"] == "0.0006"
    assert chosen.loc[("glyphs_10", f"seq {tune.ALONE}"), "optimizer.lr"] == "3e-05"
    assert set(chosen.loc["digits_5"].index) == set(tune.TRAINED)
    results.better(0.1, method="lwf", strategy="", **{"optimizer.lr": "0.0001", "method.strength": "0.3"})
    results.better(0.2, method="lwf", strategy="magmax", **{"optimizer.lr": "0.0003", "method.strength": "0.3"})
    chosen = tune.choose_training(results)
    assert chosen.loc[("digits_5", "lwf"), "optimizer.lr"] == "0.0003"
    assert chosen.loc[("digits_5", f"lwf {tune.ALONE}"), "optimizer.lr"] == "0.0001"


def test_what_only_one_seed_has_is_not_chosen(tune, results):
    results.better(0.3, method="joint", seed=0, **{"optimizer.lr": "0.0002"})
    results.better(0.2, method="joint", **{"optimizer.lr": "0.001"})
    kept = results[(results["seed"] == 0) | (results["method"] != "joint") | (results["optimizer.lr"] == "0.001")]
    assert tune.scores(kept, [0]).loc[("digits_5", "joint")].set_index("optimizer.lr")["accuracy"].idxmax() == "0.0002"
    assert tune.choose_training(kept).loc[("digits_5", "joint"), "optimizer.lr"] == "0.001"


def test_scales_have_the_best_mean_over_seeds(tune, results):
    results.better(0.5, method="seq", strategy="ties", seed=6, value=0.5)
    results.better(0.55, method="seq", strategy="average", seed=6, value=0.5)
    chosen = tune.choose_training(results).loc[("digits_5", "seq")]
    scales = tune.choose_scales(results, "digits_5", "seq", chosen)
    assert scales["ties"] == 0.3  # (0.5 + 0 + 0) / 3 < 0.2, by which 0.3 is ahead everywhere
    assert scales["average"] == 0.3
    results.better(0.2, method="seq", strategy="average", seed=7, value=0.5)
    assert tune.choose_scales(results, "digits_5", "seq", chosen)["average"] == 0.5


def test_the_smallest_of_equal_scales_is_taken(tune, results):
    lines = (results["strategy"] == "ties") & (results["method"] == "seq")
    for scale, values in ((0.3, (0.1, 0.2, 0.3)), (0.5, (0.3, 0.2, 0.1))):  # whose means differ in the last digit
        for seed, value in zip(tune.SEEDS, values, strict=True):
            results.loc[lines & (results["value"] == scale) & (results["seed"] == seed), "accuracy"] = value
    chosen = tune.choose_training(results).loc[("digits_5", "seq")]
    assert tune.choose_scales(results, "digits_5", "seq", chosen)["ties"] == 0.3


def test_the_table_has_what_was_compared(tune, results):
    for strategy in tune.JUDGES["seq"]:
        results.better(0.1, method="seq", strategy=strategy, **{"optimizer.lr": "0.0006"})
    table = tune.compared(results, tune.choose_training(results))
    found = table[table["method"] == "seq"].groupby("stream")
    scales, rates, strategies = 2 * len(tune.SEEDS), len(tune.RATES["optimizer.lr"]), len(tune.MERGED["seq"])
    judged = rates * (len(tune.JUDGES["seq"]) + 1)  # and the last encoder
    assert len(found.get_group("digits_5")) == scales * (judged + strategies - len(tune.JUDGES["seq"]))
    assert len(found.get_group("glyphs_20")) == scales * strategies
    assert set(found.get_group("glyphs_20")["optimizer.lr"]) == {"0.0006"}


def sweeper_of(tune, name, results):
    text = tune.experiment(name, tune.choose_training(results), results)
    return yaml.safe_load(text)["hydra"]["sweeper"]


def test_sequential_training_is_there_once_or_with_two_rates(tune, results):
    results.better(0.3, stream="digits_5", method="seq", strategy="", **{"optimizer.lr": "0.0001"})
    results.better(0.1, method="seq", **{"optimizer.lr": "0.0006"})

    def found(stream):
        grids = sweeper_of(tune, f"embedded_{stream}", results)["train"].values()
        return [(grid["optimizer.lr"], grid.get("tag")) for grid in grids if grid["method"] == "seq"]

    assert found("digits_5") == [(0.0006, None), (0.0001, tune.ALONE)]
    assert found("glyphs_20") == [(0.0006, None)]


def test_ewc_is_there_with_its_values_and_the_other_estimator(tune, results):
    best = {"optimizer.lr": "0.0003", "method.strength": "100000.0"}
    results.better(0.1, stream="digits_5", method="ewc", **best)
    grid = sweeper_of(tune, "beyond", results)["train"]["digits_5_ewc_cleared"]
    assert (grid["method"], grid["method.estimator"], grid["tag"]) == ("ewc", "reference_cleared", "cleared")
    assert {key: grid[key] for key in best} == {key: float(value) for key, value in best.items()}


def test_what_is_read_from_a_root(tune, tmp_path):
    """Of eighteen merges ten: two plain ones, the last encoder, and one of each other kind that the benchmark has."""
    roots = []

    def merge(strategy, changed, seed=6, rate=1e-4, validation=0.2, average=None, scale=0.5, **others):
        others |= {"optimizer": {"lr": rate}, "stream": {"name": "class", "validation": validation}}
        roots.append(tmp_path / str(len(roots)))
        path = write(roots[-1], seed=seed, strategy=strategy, tasks=5, **others)
        content = files.read_json(path / "metrics.json")
        content["config"]["method"]["average"] = average
        content["merge"] |= {"changed": changed, "validation": [{"lambda": scale, "accuracy": 0.7}]}
        files.write_json(path / "metrics.json", content)

    merge("ties", {})
    merge("ema", {"decay": 0})
    merge("ema", {"decay": 0}, scale=1.0)
    merge("ema", {"decay": 0.9})
    merge("ties", {"density": 0.1})
    merge("ties", {}, seed=1)
    merge("ties", {}, rate=5e-4)
    merge("ties", {}, validation=0.1)
    merge("magmax", {"calibration": "align", "calibration.coefficient": "select"})
    merge("average", {"calibration": "align", "calibration.steps": 7})
    merge("ema", {"decay": 0, "calibration": "align", "calibration.statistics": "encoder"})
    merge("dop", {"solver": "closed"})
    merge("nufilt", {"null_rank": 21, "variant": "corrected"})
    merge("nufilt", {"null_rank": 20})
    merge("knots", {}, rate=3e-3, model={"name": "tiny", "adapter": "lora"})
    merge("knots", {}, method="ind", model={"name": "tiny", "adapter": "lora"})
    merge("magmax", {}, average="swa")
    merge("magmax", {}, model={"name": "tiny", "adapter": None})
    found = pd.concat([tune.validated(root) for root in roots])
    expected = {"stream": "digits_5", "method": "seq", "seed": 6, "optimizer.lr": "0.0001", "method.strength": ""}
    expected |= {"value": 0.5, "accuracy": 0.7}
    last = [{"strategy": "ema last"}, {"strategy": "ema last", "value": 1.0}, {"strategy": "", "value": 1.0}]
    names = ["magmax align", "ema last align encoder", "dop closed", "nufilt narrow corrected"]
    adapters = {"method": "lora", "optimizer.lr": "0.003", "strategy": "knots"}
    averages = {"method": "swa", "strategy": "magmax"}
    of_each = [{"strategy": "ties"}, *last, *({"strategy": name} for name in names), adapters, averages]
    of_each += [{"strategy": "magmax"}]
    assert found.to_dict("records") == [{**expected, **values} for values in of_each]


def test_what_was_not_measured_is_left_out(tune, results):
    measured = results[(results["method"] != "merged") & (results["strategy"] != "fisher")]
    sweeper = sweeper_of(tune, "beyond", measured)
    assert "merged" not in {grid["method"] for grid in [*sweeper["train"].values(), *sweeper["merge"].values()]}
    strategies = {name for grid in sweeper["merge"].values() for name in grid["strategy"].split(",")}
    expected = {name.split()[0] for method in tune.BEYOND if method != "merged" for name in tune.BEYOND[method]}
    assert strategies == expected - {"fisher"}


def test_the_experiments_are_what_the_published_table_says(tune):
    results = tune.published()
    chosen = tune.choose_training(results)
    for name in tune.EXPERIMENTS:
        written = (ROOT / f"configs/experiment/{name}.yaml").read_text()
        assert tune.experiment(name, chosen, results) == written


def test_every_method_has_the_same_budget(tune):
    assert {len(list(itertools.product(*grid.values()))) for grid in tune.BUDGET.values()} == {6}


CHOSEN = ("lambda", "calibration.beta", "calibration.coefficient")


def adjusted(tune, grid):
    changed = {key: grid[key] for key in grid if key.startswith(("strategy.", "calibration")) and key not in CHOSEN}
    return tune.variant_of({key.removeprefix("strategy."): value for key, value in changed.items()}).split()


def value_of(grid):
    (value,) = (grid[key] for key in CHOSEN if key in grid)
    return value


def test_the_experiment_has_every_merge_once(tune, results):
    for stream in tune.TUNED_ON:  # takes what another stream has, so its own accuracies do not count
        results.better(0.3, stream=stream, method="seq", **{"optimizer.lr": "0.001"})
    results.better(0.3, stream="glyphs_10", method="seq", **{"optimizer.lr": "0.0002"})
    results.better(0.4, stream="glyphs_5", strategy="ties", value=0.5)
    trained = {grid["method"] for grid in sweeper_of(tune, "embedded_glyphs_5", results)["train"].values()}
    assert trained == {"zeroshot", *tune.BUDGET} - {"joint", "merged", *tune.TAGGED}
    assert "joint" in {grid["method"] for grid in sweeper_of(tune, "embedded_glyphs_10", results)["train"].values()}
    for name, of in (("embedded_glyphs_5", tune.EMBEDDED), ("beyond", tune.BEYOND), ("confirmation", tune.CONFIRMED)):
        grids = [grid for grid in sweeper_of(tune, name, results)["merge"].values() if "tasks" in grid]
        grids = [grid for grid in grids if (grid["dataset"], grid["tasks"]) == ("glyphs", 5)]
        merges = [
            (grid.get("tag", grid["method"]), " ".join([strategy, *adjusted(tune, grid)]), value_of(grid))
            for grid in grids
            for strategy in grid["strategy"].split(",")
        ]
        expected = [(method, strategy) for method, strategies in of.items() for strategy in strategies]
        assert sorted((m, s) for m, s, _ in merges) == sorted(expected)
        assert {scale for _, strategy, scale in merges if strategy != "ties"} == {0.3}
        assert all(grid["optimizer.lr"] == 0.0002 for grid in grids if grid["method"] == "seq" and "tag" not in grid)
        if of is tune.EMBEDDED:
            assert {scale for _, strategy, scale in merges if strategy == "ties"} == {0.5}
