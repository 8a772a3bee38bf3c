"""Runs, archives, pictures and results that several test files look at."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the entry scripts set them
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

# The first backward pass of a process decides whether autograd needs threads, after which no fork of it can train.
# Here, before a test has made torch believe in devices, it needs none; see `helpers.forked`.
if not torch.cuda.is_available():
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A root with short finished runs on the digits: every method, 3 tasks, 1 epoch. Each worker has its own copy."""
    root = tmp_path_factory.mktemp("runs")
    if worker_id == "master":  # there are no workers
        _train(root)
        return root
    common = tmp_path_factory.getbasetemp().parent / "trained"
    with open(common.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not common.exists():
            _train(common.with_suffix(".partial"))
            common.with_suffix(".partial").rename(common)
    return Path(shutil.copytree(common, root, dirs_exist_ok=True))


def _train(root: Path) -> None:
    from helpers import command

    outcome = command("train.py", "-m", f"root={root}", "tasks=3", "epochs=1", "method=seq,ind,joint,zeroshot")
    assert outcome.code == 0, outcome.err


@pytest.fixture
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """The archives that tests make are not the official ones."""
    from archives import accept_checksums

    accept_checksums(monkeypatch)


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A root where every archive is written once, when it is asked for; no test changes them."""
    from archives import WRITERS

    top, written = tmp_path_factory.mktemp("archives"), set()

    def root_with(*names: str) -> Path:
        root = top / ("folder" if "folder" in names else "others")  # a folder of classes must hold nothing else
        for name in names:
            if name not in written:
                WRITERS[name](root)
                written.add(name)
        return root

    return root_with


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of five JPEGs, undivided."""
    from archives import save

    for label, name in enumerate(("cat", "dog")):
        for number in range(5):
            save(tmp_path / "photos" / name / f"{number}.jpg", label, number)
    return tmp_path / "photos"


@pytest.fixture
def made_up_root(tmp_path: Path) -> Path:
    """A root with made-up results: three seeds of two methods, and their merges with four λ."""
    from made_up import write

    for seed in (1, 2, 3):
        for method, gain in (("seq", 0.0), ("ind", 0.1)):
            write(tmp_path, method, seed, 0.4 + gain + 0.01 * seed**2)
            for scale in (0.3, 0.5, 0.7, 1):
                write(tmp_path, method, seed, 0.6 + 0.2 * gain + 0.01 * seed - (scale - 0.5) ** 2, "magmax", scale)
    return tmp_path
