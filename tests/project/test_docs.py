"""What the README and docs/ say one can type works: every command composes, and the examples of one's own run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap

import pytest
from helpers import ROOT
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

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
