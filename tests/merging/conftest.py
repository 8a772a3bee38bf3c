"""Finished runs to merge. They learn noise, because merging is about bits and files."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import command, config, noise

from mergestream.compose.run import run_of
from mergestream.runs.directory import Run

WORDS = (*noise(), "epochs=1", "batch_size=32")


@pytest.fixture(scope="session")
def words() -> tuple[str, ...]:
    """The overrides of the runs."""
    return WORDS


@pytest.fixture(scope="session")
def run_at() -> Callable[..., Run]:
    """The run below a root, by further overrides."""
    return functools.cache(lambda root, *overrides: run_of(config("merge", f"root={root}", *WORDS, *overrides)))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with finished runs: three tasks one after the other, all at once, and none. Not to be changed."""
    root = tmp_path_factory.mktemp("finished")
    outcome = command("train.py", "-m", f"root={root}", *WORDS, "method=seq,joint,zeroshot")
    assert outcome.code == 0, outcome.err
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished runs, to merge in."""
    shutil.copytree(finished, tmp_path / "runs")
    return tmp_path / "runs"
