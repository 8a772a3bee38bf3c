"""The package's metadata agree: version, commands, Python versions, locked packages, and the checks before a commit."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.metadata import requires, version

import pytest
import yaml
from helpers import ROOT

import mergestream

PYPROJECT = (ROOT / "pyproject.toml").read_text()  # Python 3.10 has no TOML parser
COMMANDS = dict(re.findall(r'^(mergestream-\w+) = "([\w.]+:\w+)"$', PYPROJECT, re.MULTILINE))
LOCK = (ROOT / "requirements.lock").read_text()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_version_has_one_source():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert version("mergestream") == mergestream.__version__ == citation["version"]


def test_every_script_has_a_command():
    scripts = sorted(path.stem for path in ROOT.glob("*.py"))
    assert sorted(COMMANDS) == [f"mergestream-{script}" for script in scripts]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_exists(command):
    module, _, function = COMMANDS[command].partition(":")
    assert callable(getattr(import_module(module), function))


def test_claimed_python_versions_are_tested():
    claimed = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', PYPROJECT)
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"] == claimed
    assert f'requires-python = ">={claimed[0]}"' in PYPROJECT
    assert f'python_version = "{claimed[0]}"' in PYPROJECT  # mypy's
    assert f'target-version = "py{claimed[0].replace(".", "")}"' in PYPROJECT  # ruff's


def test_workflow_calls_targets_that_exist():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    called = re.findall(r"run: make (\w+)", workflow)
    assert set(called) == {"lint", "test", "wheel", "docs"}
    assert set(called) <= set(targets)


def test_lock_pins_every_dependency():
    pinned = {canonical(line.partition("==")[0]) for line in LOCK.splitlines()}
    extra = re.compile(r"extra == ['\"](\w+)['\"]")
    declared = requires("mergestream") or []
    locked = [line for line in declared if not (found := extra.search(line)) or found[1] not in ("slurm", "ray")]
    names = {canonical(re.match(r"[\w.-]+", line)[0]) for line in locked}
    assert {"torch", "hydra-core", "pytest", "import-linter", "mkdocs-material"} <= names
    assert names <= pinned


def test_lock_has_versions_alone():
    for line in LOCK.splitlines():
        assert re.fullmatch(r"[\w.-]+==[\w.]+( ; .+)?", line), line


def test_hooks_run_the_linters_of_make_lint():
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    linters = re.findall(r"\$\(BIN\)/([\w-]+(?: (?:format|check))?)", recipe[1])
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert linters == [re.match(r"\.venv/bin/([\w-]+(?: (?:format|check))?)", hook["entry"])[1] for hook in hooks]
