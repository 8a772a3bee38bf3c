"""README and docs/: commands compose, examples run as they stand, tables and links are right, pages form a site."""

from __future__ import annotations

import functools
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from helpers import ROOT, command, shipped
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from mergestream import strategies
from mergestream.runtime import files
from mergestream.strategies.reference import references

DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
EXTENDING = (DOCS / "extending.md").read_text()
SITE = sorted(DOCS.rglob("*.md"))
WRITTEN = [ROOT / "README.md", *(page for page in SITE if DOCS / "results" not in page.parents)]  # by hand
BLOB = "https://github.com/mergestream/mergestream/blob/main/"
RAW = "https://raw.githubusercontent.com/mergestream/mergestream/main/"
COMMAND = re.compile(r"\bpython (train|merge|predict|evaluate|report|analyze|pipeline|fetch)\.py\b([^`#\n]*)")
# What stands for a value of the reader's.
STANDING = {"dataset=D": "dataset=cars", "tasks=T": "tasks=5", "analysis=NAME": "analysis=pruning"}
STANDING |= {
    "images=DIR": "images=photos",
    "analysis=glob(*)": "analysis=cosine",
    "$@": "dataset=cars",
}
# The page that names every option of a group.
OPTIONS = dict.fromkeys(("model", "method", "strategy", "stream", "schedule", "logger"), "README.md")
OPTIONS |= {
    "dataset": "docs/data.md",
    "analysis": "docs/reports.md",
    "experiment": "docs/paper.md",
    "calibration": "docs/merging.md",
    "cluster": "docs/clusters.md",
}


def options(group: str) -> list[str]:
    """The options of a config group that ship, without the parts of an experiment."""
    return [name for name in shipped(group) if not name.startswith("embedded_")]


def expanded(text: str) -> str:
    """A page with the shell variables that it sets replaced by their values."""
    for name, value in re.findall(r"^ +([A-Z]+)='([^'\n]*)'$", text, re.MULTILINE):
        text = text.replace(f"${name}", value)
    return text


def commands() -> Iterator[Any]:
    """(script, words) of every command, each once, by the first page that shows it."""
    found: dict[tuple[str, tuple[str, ...]], str] = {}
    for page in WRITTEN:
        for script, rest in COMMAND.findall(expanded(page.read_text())):
            words = tuple(shlex.split(rest))
            if not {"--help", "dataset=mine"} & set(words):  # the latter are run below
                found.setdefault((script, words), page.name)
    for (script, words), name in found.items():
        yield pytest.param(script, words, id=f"{name}: {script} {' '.join(words)}"[:90])


def compose_jobs(script: str, words: list[str]) -> None:
    """Compose the first and the last job of a sweep, or the only one."""
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    for job in (jobs[0], jobs[-1]):
        compose_job(script, tuple(job))


@functools.cache  # commands share jobs
def compose_job(script: str, job: tuple[str, ...]) -> None:
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        compose(script, list(job), return_hydra_config=any("experiment" in word for word in job))


@pytest.mark.parametrize(("script", "words"), list(commands()))
def test_commands_compose(script, words):
    compose_jobs(script, [STANDING.get(word, word) for word in words if word != "-m"])


def anchors(page: Path) -> set[str]:
    """What a link into a page can name: its headings, as they are made into ids."""
    headings = re.findall(r"^#+ (.*)", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        target, _, anchor = link.partition("#")
        if target.startswith((BLOB, RAW)):
            path = ROOT / target.removeprefix(BLOB).removeprefix(RAW)
        elif target.startswith("https://"):
            continue
        else:
            path = page.parent / target if target else page
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


def test_the_readme_is_short_and_complete_on_its_own():
    assert len(README.splitlines()) <= 190
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", README)  # a package page has no files beside it
    assert links
    assert all(link.startswith("https://") for link in links)
    assert any(link.startswith(RAW) for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", README))


def test_the_first_page_says_what_the_readme_says():
    opening = README[: README.index("\n![")]
    assert "| λ |" in opening
    assert (DOCS / "index.md").read_text().startswith(opening)


def test_the_commands_of_arrivals_keep_a_classifier_up_to_date(tmp_path, monkeypatch):
    """In order, as they stand, and with the answers that the page promises."""
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^    (\S.*)", expanded((DOCS / "arrivals.md").read_text()), re.MULTILINE)
    ran = [words for line in lines if (words := shlex.split(line))[0] in ("python", "rm") and "watch=60" not in words]
    assert len(ran) == 12
    for program, script, *words in ran:
        if program == "rm":
            subprocess.run([program, script, *words], check=True)
        else:
            outcome = command(script, *words)
            assert outcome.code == 0, outcome.err
    (run,) = Path("runs").rglob("images.json")
    tasks = files.read_json(run.parent / "metrics.json")["test_samples"]
    merged = files.read_json(run.parent / "merges/magmax-select/metrics.json")["test_samples"]
    assert tasks == merged == [40, 40, 40, 20]
    for name in ("answers.csv", "taken-along.csv"):
        answers = pd.read_csv(name)
        right = [f"digit {Path(path).stem.split('-')[0]}" for path in answers["path"]]
        assert len(right) == 60
        assert (answers["class"] == right).sum() >= 50


def test_every_page_is_in_the_nav():
    def pages(node: Any) -> list[str]:
        if isinstance(node, str):
            return [node]
        return [page for part in (node.values() if isinstance(node, dict) else node) for page in pages(part)]

    nav = pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(nav) == sorted(str(page.relative_to(DOCS)) for page in SITE)


@pytest.mark.parametrize("group", OPTIONS)
def test_every_option_is_named(group):
    text = (ROOT / OPTIONS[group]).read_text()
    assert options(group)
    assert [name for name in options(group) if f"`{name}`" not in text] == []


def test_the_strategies_link_where_they_were_published():
    """The README, the decorators and what is read from their source without torch say the same."""
    found = references()
    for name in shipped("strategy"):
        reference = strategies.get(name).reference
        assert found[name] == reference
        (row,) = (line for line in README.splitlines() if re.match(rf"\|[^|]*`{name}`[^|]*\|[^|]*\|[ \d.,]+\|", line))
        assert f"]({reference.address}) |" in row, name


def test_the_strategies_have_their_scale():
    rows = re.findall(r"^\| (`\w+`(?:, `\w+`)?) \| [^|]+ \| ([\d., ]+) \| [^|]+ \|$", README, re.MULTILINE)
    said: dict[str, float] = {}
    for cell, scales in rows:
        names, values = re.findall(r"\w+", cell), scales.split(", ")
        said |= dict(zip(names, values if len(values) > 1 else values * len(names), strict=True))
    assert sorted(said) == shipped("strategy")
    for name, scale in said.items():
        assert float(scale) == OmegaConf.load(ROOT / f"configs/strategy/{name}.yaml").scale, name


@pytest.mark.parametrize("page", ["README.md", "docs/merging.md"])
def test_checkpoints_are_merged_in_three_lines(page, tmp_path, monkeypatch):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)
    assert len([line for line in block.splitlines() if line]) <= 3
    *inputs, out = re.findall(r'"(\S+\.safetensors)"', block)
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(inputs):
        save_file({"weight": torch.full((4, 4), float(number))}, name)
    exec(block, {})
    assert load_file(out)["weight"].shape == (4, 4)


def test_an_experiment_of_ones_own_is_a_grid(tmp_path):
    (block,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "paper.md").read_text(), re.DOTALL)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(block)
    words = [f"hydra.searchpath=[file://{tmp_path}]", "+experiment=mine"]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        sweeper = compose("train", words, return_hydra_config=True).hydra.sweeper
    assert [len(sweeper.train), len(sweeper.merge)] == [1, 2]
    for script in ("train", "merge"):
        for grid in sweeper[script].values():
            compose_jobs(script, [f"{key}={value}" for key, value in grid.items()])


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Iterator[Path]:
    """The files of docs/extending.md in a tree of their own, which the packages are extended with."""
    tree = tmp_path_factory.mktemp("extended")
    blocks = re.findall(r"```(?:python|yaml)\n(.*?)```", EXTENDING, re.DOTALL)
    paths = list(dict.fromkeys(re.findall(r"`((?:src|configs)/\S+mine\.\w+)`", EXTENDING)))
    assert len(blocks) == len(paths) == 12
    for path, block in zip(paths, blocks, strict=True):
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_text(block)
    modules = [".".join(Path(path).with_suffix("").parts[1:]) for path in paths if path.startswith("src/")]
    packages = {name: import_module(name.removesuffix(".mine")) for name in modules}
    with pytest.MonkeyPatch.context() as patch:
        for name, package in packages.items():
            folder = (tree / "src").joinpath(*name.split(".")).parent
            patch.setattr(package, "__path__", [*package.__path__, str(folder)])
        yield tree
    for name, package in packages.items():
        sys.modules.pop(name, None)
        vars(package).pop("mine", None)


def test_examples_of_ones_own(extended, tmp_path):
    found = re.findall(r"^ +python (train|merge|analyze)\.py (dataset=mine.*)", EXTENDING, re.MULTILINE)
    assert [script for script, _ in found] == ["train", "merge", "analyze"]
    for script, words in found:
        more = [f"root={tmp_path}", *(["strategy.sharpness=1"] if script == "merge" else [])]
        outcome = command(f"{script}.py", f"--config-dir={extended}/configs", *shlex.split(words), *more)
        assert outcome.code == 0, outcome.err
    (folder,) = re.findall(r"`runs/(mine/\S+)`", EXTENDING)
    assert (tmp_path / folder / "merges/mine-calibration=mine-sharpness=1-1/merged.safetensors").is_file()
    norms = pd.read_csv(tmp_path / folder / "analyses/mine.csv")["norm"]
    assert len(norms) == 5
    assert (norms > 0).all()


def test_a_strategy_in_ones_own_package(extended, tmp_path, monkeypatch):
    ((path, target),) = re.findall(r"here `(my_configs/\S+)`, with the `_target_` .*?`(\S+)`", EXTENDING, re.DOTALL)
    (words,) = re.findall(r"^ +mergestream-merge (.*)", EXTENDING, re.MULTILINE)
    module = Path(*target.split(".")[:-1]).with_suffix(".py")
    for name, source in ((module, "src/mergestream/strategies/mine.py"), (path, "configs/strategy/mine.yaml")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        text = (extended / source).read_text()
        (tmp_path / name).write_text(text.replace("mergestream.strategies.mine.mine", target))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("my_package", "my_package.mine"):  # of other tests
        monkeypatch.delitem(sys.modules, module, raising=False)
    for name, value in (("base", 0.0), ("a", 1.0), ("b", 1.0)):
        save_file({"weight": torch.full((2, 2), value)}, f"{name}.safetensors")
    given = ["base=base.safetensors", "checkpoints=[a.safetensors,b.safetensors]", "out=merged.safetensors"]
    outcome = command("merge.py", *shlex.split(words), *given)
    assert outcome.code == 0, outcome.err
    assert load_file("merged.safetensors")["weight"].tolist() == [[2.0, 2.0], [2.0, 2.0]]  # sharpness · the median
