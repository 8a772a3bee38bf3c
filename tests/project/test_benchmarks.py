"""The scripts in benchmarks/ still fit the code that they measure."""

from __future__ import annotations

import importlib.util
import sys

import pytest
from helpers import ROOT, noise

SCRIPTS = sorted((ROOT / "benchmarks").glob("*.py"))


def load(path):
    spec = importlib.util.spec_from_file_location(f"benchmark_{path.stem}", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)  # where its dataclasses look for it
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_a_benchmark_says_what_it_measures(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    with pytest.raises(SystemExit) as stop:
        load(path).main()
    assert stop.value.code == 0
    assert f"benchmarks/{path.name}" in capsys.readouterr().out


def test_the_time_of_saving_is_part_of_the_time_of_training():
    everything, saving = load(ROOT / "benchmarks/checkpoint.py").seconds(*noise(), "epochs=1")
    assert 0 < saving < everything
