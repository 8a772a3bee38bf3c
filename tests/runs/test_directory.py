"""The run directory: its path, its command, and the runs beside it."""

from __future__ import annotations

import sys
from pathlib import Path

from helpers import config

from mergestream.compose.run import run_of
from mergestream.runs.directory import Run

RUN = Run(Path("runs"), "digits", "class", 5, "tiny", "seq", 3)


def test_path_and_command_name_the_same_values(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py"])
    assert Path("runs/digits/class-5/tiny/seq/seed-3") == RUN.path
    assert RUN.command == "python train.py dataset=digits tasks=5 method=seq model=tiny seed=3"
    other = Run(Path("x"), "cub", "domain", 2, "vit", "ewc-1", 0, "b", {"dataset": "folder", "method": "ewc"}, ("a=1",))
    assert other.path == Path("x/cub/domain-2/vit/ewc-1/seed-0-b")
    words = "dataset=folder tasks=2 method=ewc model=vit seed=0 stream=domain tag=b root=x a=1"
    assert other.command == f"python train.py {words}"


def test_an_installed_command_is_named_in_messages(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mergestream-merge"])
    assert RUN.command.startswith("mergestream-train dataset=digits ")


def test_the_config_decides_the_directory(tmp_path):
    run = run_of(config("merge", f"root={tmp_path}", "tasks=3", "method=ind", "tag=b", "seed=7"))
    assert run.path == tmp_path / "digits/class-3/tiny/ind/seed-7-b"


def test_neighbours_differ_in_method_or_seed_alone():
    typed = Run(Path("runs"), "digits", "class", 5, "tiny", "ewc-2", 3, options={"method": "ewc"}, extra=("epochs=1",))
    other = typed.with_method("ind")
    assert other.path == Path("runs/digits/class-5/tiny/ind/seed-3")
    assert other.command.endswith("dataset=digits tasks=5 method=ind model=tiny seed=3 epochs=1")
    assert typed.with_seed(9).path == Path("runs/digits/class-5/tiny/ewc-2/seed-9")
