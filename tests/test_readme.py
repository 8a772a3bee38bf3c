"""What the README and docs/ say one can type works: every command composes, and the examples of one's own run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import pandas as pd
import pytest
from helpers import ROOT
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"\bpython (train|merge|report|analyze)\.py\b([^`#\n]*)")
# What stands for a value of the reader's.
STANDING = {"dataset=D": "dataset=cars", "tasks=T": "tasks=5", "+experiment=NAME": "+experiment=smoke"}
STANDING |= {
    "analysis=NAME": "analysis=pruning",
    "analysis=glob(*)": "analysis=cosine",
    "GROUP=OPTION": "model=tiny",
    "KEY=VALUE": "seed=1",
}


def commands():
    """(page, script, words) of every command that a page shows, each once."""
    for page in PAGES:
        for script, rest in dict.fromkeys(COMMAND.findall(page.read_text())):
            words = shlex.split(rest.split("&&")[0])
            if "--help" in words or "dataset=mine" in words:  # the latter runs below
                continue
            yield pytest.param(script, words, id=f"{page.name}: {script} {' '.join(words)}"[:90])


@pytest.mark.parametrize(("script", "words"), list(commands()))
def test_commands_compose(script, words):
    words = [STANDING.get(word, word) for word in words if word != "-m"]
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        for job in (jobs[0], jobs[-1]):
            compose(script, job, return_hydra_config="+experiment" in str(words))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text()):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_published_figures_are_small():
    figures = list((ROOT / "docs/results").glob("*.png"))
    assert figures
    assert all(path.stat().st_size < 200_000 for path in figures)


@pytest.fixture(scope="module")
def report():
    texts = dict.fromkeys(("strategy", "options", "scale", "tag"), str)
    return pd.read_csv(ROOT / "docs/results/report.csv", dtype=texts).fillna(dict.fromkeys(texts, ""))


def only(report, **values):
    """The one row with these values."""
    (row,) = report[(report[list(values)] == pd.Series(values)).all(axis=1)].to_dict("records")
    return row


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_published_accuracies_are_those_of_the_report(page, report):
    """Every cell of the page's table is in docs/results/report.csv."""
    table = re.search(r"^\| accuracy \(%\) \|.*?(?=\n\n|\Z)", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)[0]
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    assert len(head) == 1 + len(merged(report))
    for name, *cells in lines:
        for title, cell in zip(head[1:], cells, strict=True):
            dataset, count, unit = re.fullmatch(r"(\w+), (\d+) (tasks|domains)", title).groups()
            stream = "class" if unit == "tasks" else "domain"
            row = only(report, dataset=dataset, stream=stream, tasks=int(count), name=name.strip("*"))
            assert cell.strip("*") == f"{100 * row['final_accuracy']:.1f} ± {100 * row['final_accuracy_std']:.1f}"
            assert row["n"] == 5


def merged(report):
    """(dataset, stream, tasks) of the benchmarks with merges."""
    lines = report.loc[report["strategy"] != "", ["dataset", "stream", "tasks"]]
    return set(lines.itertuples(index=False, name=None))


def test_published_results_have_the_values_of_the_experiment(report):
    """λ of every merge; a report of other values would have other rows."""
    seen = set()
    for part in ROOT.glob("configs/experiment/embedded_*.yaml"):
        for grid in OmegaConf.to_container(OmegaConf.load(part))["hydra"]["sweeper"]["merge"].values():
            benchmark = (grid["dataset"], grid.get("stream", "class"), grid.get("tasks", 6))
            if benchmark not in merged(report):
                continue
            seen.add(benchmark)
            where = dict(zip(("dataset", "stream", "tasks"), benchmark, strict=True))
            for strategy in grid["strategy"].split(","):
                row = only(report, **where, method=grid["method"], strategy=strategy, tag="", options="")
                assert row["scale"] == f"{grid['lambda']:g}"
    assert seen == merged(report)


def test_examples_of_ones_own(tmp_path):
    """Strategy, data set, method and model of "Add your own", as they stand there, in a tree of their own."""
    section = (ROOT / "README.md").read_text().split("## Add your own")[1].split("\n## ")[0]
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("train.py", "merge.py"):
        shutil.copy(ROOT / name, tmp_path)
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", section, re.DOTALL)
    paths = list(dict.fromkeys(re.findall(r"`((?:src|configs)/\S+mine\.\w+)`", section)))
    assert len(blocks) == len(paths) == 8
    for path, block in zip(paths, blocks, strict=True):
        (tmp_path / path).write_text(textwrap.dedent(block))
    (train,) = re.findall(r"`(python train\.py dataset=mine[^`]*)`", section)
    words = train.split()[2:]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    for arguments in (["train.py", *words], ["merge.py", *words, "strategy=mine", "strategy.sharpness=1"]):
        done = subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/mine/class-5/mine/mine/seed-5/merges/mine-sharpness=1-1/merged.safetensors").is_file()
