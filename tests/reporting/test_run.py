"""report.py: the files it writes, and its errors."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pandas as pd
import pytest
from helpers import command
from made_up import write
from PIL import Image

from mergestream.reporting.rows import ROW


def test_files_of_a_report(made_up_root):
    outcome = command("report.py", f"root={made_up_root}")
    assert outcome.code == 0, outcome.err
    assert "62.00 ± 1.00" in outcome.out
    out = made_up_root / "_report"
    names = ["class-tiny-comparison.png"]
    names += [f"digits-class-2-tiny-{kind}.png" for kind in ("curves", "lambda", "matrices")]
    names += ["report.csv", "report.html", "report.md", "report.tex", "runs.csv"]
    assert sorted(path.name for path in out.iterdir()) == names
    table = pd.read_csv(out / "report.csv", keep_default_na=False)
    assert set(ROW) <= set(table.columns)
    assert len(table) == 10
    assert len(pd.read_csv(out / "runs.csv")) == 30
    text = (out / "report.md").read_text()
    assert "| MaxAbs, λ = 0.5 | **64.00 ± 1.00** |" in text
    assert "| MagMax, λ = 0.5 | <u>62.00 ± 1.00</u> |" in text
    for name in names[:4]:
        assert f"]({name})" in text
        with Image.open(out / name) as image:
            assert image.size[0] > 400
    before = {path: path.read_bytes() for path in out.iterdir() if path.suffix in (".csv", ".tex", ".png")}
    assert command("report.py", f"root={made_up_root}").code == 0  # its own files are no results
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.usefixtures("without_figures")
def test_baseline_option(made_up_root):
    outcome = command("report.py", f"root={made_up_root}", "baseline='MaxAbs, λ = 0.5'")
    assert outcome.code == 0, outcome.err
    assert "− MaxAbs, λ = 0.5" in outcome.out
    outcome = command("report.py", f"root={made_up_root}", "baseline=maxabs")
    assert outcome.code == 1
    assert "baseline must be a row of the report; got baseline=maxabs. The nearest: " in outcome.err
    typed = shlex.split(outcome.err.split("The nearest: ")[1])
    assert command("report.py", f"root={made_up_root}", typed[0]).code == 0


def test_report_of_bounds_alone(tmp_path):
    write(tmp_path, "zeroshot")
    outcome = command("report.py", f"root={tmp_path}")
    assert outcome.code == 0, outcome.err
    assert not list((tmp_path / "_report").glob("*comparison*"))


@pytest.mark.usefixtures("without_figures")
def test_bad_folders(tmp_path):
    (tmp_path / "file").touch()
    for overrides, message in (
        ([f"root={tmp_path}"], "has none"),
        ([f"root={tmp_path}/nothing"], "root must be a folder with runs"),
        ([f"root={tmp_path}", f"out={tmp_path}/file"], "out must be a folder"),
    ):
        outcome = command("report.py", *overrides)
        assert outcome.code == 1
        assert len(outcome.err.strip().splitlines()) == 1
        assert message in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_report_imports_no_torch():
    """Torch takes longer to import than most reports take."""
    code = "import sys, mergestream.compose.report, mergestream.reporting.run; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
