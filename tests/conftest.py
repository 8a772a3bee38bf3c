"""Runs that several test files look at, trained once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the entry scripts set them
os.environ.setdefault("GOMP_SPINCOUNT", "1000")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with short finished runs on the digits: every method, 3 tasks, 1 epoch."""
    from helpers import command

    root = tmp_path_factory.mktemp("runs")
    outcome = command("train.py", "-m", f"root={root}", "tasks=3", "epochs=1", "method=seq,ind,joint,zeroshot")
    assert outcome.code == 0, outcome.err
    return root
