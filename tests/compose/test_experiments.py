"""Experiments: every grid composes, and one command runs it and passes over what is done."""

from __future__ import annotations

import pytest
from helpers import ROOT, command, config, files_below, noise, shipped
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from mergestream.compose.checks import check_merge, check_training
from mergestream.compose.strategy import bound_strategy
from mergestream.training import launcher

OF_MERGES = ("strategy", "lambda", "prefixes", "candidates", "calibration")
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))


def grids(script, experiment):
    """The jobs of each grid of an experiment, as dicts of overrides."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        cfg = compose(script, [f"+experiment={experiment}"], return_hydra_config=True)
    assert cfg.hydra.mode.name == "MULTIRUN"
    common = dict(cfg.hydra.sweeper.params)
    found = []
    for grid in cfg.hydra.sweeper[script].values():
        words = [f"{key}={value}" for key, value in {**common, **grid}.items()]
        (batch,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
        found.append([dict(word.split("=") for word in job) for job in batch])
    return found


def composed(script, job):
    """The resolved config of one job."""
    cfg = config(script, *[f"{key}={value}" for key, value in job.items()])
    OmegaConf.resolve(cfg)
    return cfg


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_merge_of_an_experiment_has_its_training(experiment):
    def names(job):
        return tuple(sorted((k, v) for k, v in job.items() if k.split(".")[0] not in (*OF_MERGES, "curvature")))

    trainings, merges = grids("train", experiment), grids("merge", experiment)
    trained = [names(job) for grid in trainings for job in grid]
    assert len(trained) == len(set(trained))
    assert all(names(job) in trained for grid in merges for job in grid)
    for grid in trainings:
        check_training(composed("train", grid[-1]))
    for grid in merges:  # the rest of the job is the training's, which is checked above
        own = {k: v for k, v in grid[-1].items() if k.split(".")[0] in OF_MERGES}
        cfg = composed("merge", own)
        check_merge(cfg)
        bound_strategy(cfg)


def test_table1_is_the_papers():
    jobs = [job for grid in grids("train", "table1") for job in grid]
    cells = {(job["dataset"], job["tasks"], job["method"]) for job in jobs}
    assert len(jobs) == len(cells) == 4 * (4 + 4 + 3 + 3) + 4 * 2
    assert ("cub200", "50", "seq") not in cells
    merges = [job for grid in grids("merge", "table1") for job in grid]
    assert {(job["method"], job["strategy"]) for job in merges} == {
        ("seq", "magmax"), ("ind", "magmax"), ("ind", "average"), ("ind", "random_mix"), ("ind", "ties"),
    }  # fmt: skip
    assert all(job["strategy.scope"] == "clip" for job in merges if job["strategy"] == "ties")
    cfg = composed("train", jobs[0])
    assert (cfg.model.name, cfg.schedule.warmup, cfg.epochs, cfg.batch_size) == ("vit_b_16", 500, 10, 128)


def test_supplement_is_table1_with_another_model():
    table, supplement = grids("train", "table1"), grids("train", "supplement_vit_l_14")
    assert supplement == [[{"model": "vit_l_14", **job} for job in grid] for grid in table]


STREAMS = {("digits", "5"), ("glyphs", "5"), ("glyphs", "10"), ("glyphs", "20"), ("glyphs", "domain")}
LATER = {"fisher", "laplace", "regmean", "consensus", "metagpt", "nufilt"}  # than the paper or the benchmark


def streams_of(script, experiment, seeds, *keys):
    """(stream, the values of `keys`) of every job that is not tuned alone; each is there with all seeds."""
    found = {}
    for job in (job for grid in grids(script, experiment) for job in grid):
        if job.get("tag") != "tuned-alone":
            stream = job["dataset"], job.get("stream", job.get("tasks"))
            found.setdefault((stream, *(job.get(key, "") for key in keys)), []).append(job["seed"])
    assert all(of == seeds for of in found.values())
    return set(found)


def test_the_embedded_benchmark_is_whole():
    seeds = ["1", "2", "3", "4", "5"]
    # Joint accuracy does not depend on T, so it is there once for glyphs by class.
    methods = {(s, m) for s in STREAMS for m in ("zeroshot", "seq", "ind", "ewc", "lwf", "joint")}
    trained = streams_of("train", "embedded", seeds, "method")
    assert trained == methods - {(("glyphs", t), "joint") for t in ("5", "20")}
    # Without weights, weighted_average is average; core_space is for adapters.
    strategies = set(shipped("strategy")) - {"weighted_average", "core_space", "dop", *LATER}
    expected = {(s, m, strategy) for s in STREAMS for m in ("seq", "ind") for strategy in strategies}
    expected |= {(s, m, "magmax") for s in STREAMS for m in ("ewc", "lwf")}
    assert streams_of("merge", "embedded", seeds, "method", "strategy") == expected


def test_what_came_after_the_paper_is_whole():
    seeds = ["1", "2", "3", "4", "5"]
    trained = [(method, "") for method in ("zeroshot", "seq", "lwf", "merged")]
    trained += [("seq", "swa"), ("seq", "lora"), ("ewc", "cleared")]
    assert streams_of("train", "beyond", seeds, "method", "tag") == {(s, *of) for s in STREAMS for of in trained}

    keys = ["method", "strategy", "calibration", "calibration.statistics", "tag"]
    keys += [f"strategy.{option}" for option in ("threshold", "variant", "rule", "decay", "solver", "null_rank")]
    merges = set()

    def merged(method, strategies, **values):
        """These merges are in the experiment, with the values of `keys` whose last part is named."""
        values = {key: values.get(key.rpartition(".")[2], "") for key in keys[2:]}
        merges.update((s, method, strategy, *values.values()) for s in STREAMS for strategy in strategies)

    for calibration in ("", "align", "lines", "svc"):
        merged("seq", ["average", "magmax"], calibration=calibration)
    merged("seq", set(LATER) - {"nufilt"})
    for variant in ("", "corrected"):
        merged("seq", ["dop"], solver="closed", variant=variant)
        merged("seq", ["nufilt"], null_rank="21", variant=variant)
    merged("seq", ["consensus"], threshold="0.2")
    merged("seq", ["average"], calibration="align", statistics="encoder")
    merged("seq", ["ema"], calibration="align", statistics="encoder", decay="0")
    merged("seq", ["ema"], decay="0")
    merged("lwf", ["magmax", "ema"])
    merged("lwf", ["ema"], calibration="align")
    merged("lwf", ["ema"], calibration="align", statistics="encoder")
    merged("merged", ["ema", "average", "magmax"])
    merged("seq", ["average", "magmax"], tag="swa")
    merged("seq", ["average", "magmax", "knots", "core_space"], tag="lora")
    merged("seq", ["core_space"], tag="lora", rule="ties")
    assert streams_of("merge", "beyond", seeds, *keys) == merges


def test_the_confirmation_has_seeds_of_its_own():
    seeds = ["8", "9", "10", "11", "12"]  # 0, 6 and 7 chose the values, 1 to 5 chose what is confirmed
    by_class = STREAMS - {("glyphs", "domain")}
    trained = streams_of("train", "confirmation", seeds, "method")
    assert trained == {(s, m) for s in by_class for m in ("seq", "lwf")}
    merges = [("seq", s, c) for s in ("average", "magmax") for c in ("", "align")]
    merges += [("lwf", "ema", ""), ("lwf", "ema", "align")]
    confirmed = streams_of("merge", "confirmation", seeds, "method", "strategy", "calibration")
    assert confirmed == {(s, *merge) for s in by_class for merge in merges}


@pytest.fixture
def two_grids(tmp_path, monkeypatch):
    """An experiment of two grids, in a config folder of its own."""
    folder = tmp_path / "configs/experiment"
    folder.mkdir(parents=True)
    (folder / "small.yaml").write_text(
        """# @package _global_
hydra:
  mode: MULTIRUN
  sweeper:
    params: { epochs: 1, tasks: 2 }
    train:
      one: { method: seq, seed: 1 }
      two: { method: zeroshot, seed: "1,2" }
    merge:
      one: { method: seq, seed: 1, strategy: "magmax,average" }
"""
    )
    words = [word for word in noise() if not word.startswith("tasks=")]
    return [f"hydra.searchpath=[file://{tmp_path}/configs]", "+experiment=small", f"root={tmp_path}/runs", *words]


def test_one_command_runs_all_grids_and_passes_over_what_is_done(two_grids, tmp_path):
    outcome = command("train.py", *two_grids)
    assert outcome.code == 0, outcome.err
    assert len(list(tmp_path.rglob("metrics.json"))) == 3
    again = command("train.py", *two_grids)
    assert again.out.count("already finished, nothing to do") == 3

    assert command("merge.py", *two_grids).code == 0
    merged = sorted(tmp_path.rglob("merges/*/metrics.json"))
    assert len(merged) == 2
    times = {path: path.stat().st_mtime_ns for path in files_below(tmp_path / "runs/folder")}
    assert command("merge.py", *two_grids).out.count("already merged, nothing to do") == 2
    assert times == {path: path.stat().st_mtime_ns for path in files_below(tmp_path / "runs/folder")}
    # evaluate.py measures the merges, or the encoders of the trainings.
    measured = command("evaluate.py", *two_grids, "on=[digits]")
    assert measured.code == 0, measured.err
    assert len(list(tmp_path.rglob("merges/*/retention/digits.json"))) == 2
    assert command("evaluate.py", *two_grids, "on=[digits]", "encoder=last").out.count("already measured") == 2
    assert len(list(tmp_path.rglob("retention/digits.json"))) == 3  # both runs of zeroshot have θ₀
    # A run that was trained again is merged again.
    run = merged[0].parents[2]
    (run / "metrics.json").touch()
    assert "already merged" not in command("merge.py", *two_grids, "strategy=average").out


def test_what_is_typed_wins_over_the_grids(two_grids, tmp_path):
    assert command("train.py", *two_grids, "seed=7", "method=zeroshot").code == 0
    assert [path.parent.name for path in tmp_path.rglob("metrics.json")] == ["seed-7"]


def test_a_sweep_composes_each_job_once(two_grids, monkeypatch):
    composed = []

    def recorded(self, master_config, sweep_overrides, original=ConfigLoaderImpl.load_sweep_config):
        composed.append(tuple(sweep_overrides))
        return original(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", recorded)
    monkeypatch.setattr(launcher, "launch", lambda *_, **__: None)
    assert command("train.py", *two_grids).code == 0
    assert len(composed) == len(set(composed)) == 3
    assert command("train.py", *two_grids, "tasks=0").code == 1
