"""docs/clusters.md lists what tests/slurm try, and no more."""

from __future__ import annotations

import ast

from helpers import ROOT


def test_the_table_lists_what_is_tried():
    page = (ROOT / "docs/clusters.md").read_text()
    shown = page.partition("| tried | result |\n|---|---|\n")[2].split("\n\n")[0].splitlines()
    trees = [ast.parse(path.read_text()) for path in sorted((ROOT / "tests/slurm").glob("test_*.py"))]
    tests = [node for tree in trees for node in tree.body if getattr(node, "name", "").startswith("test_")]
    assert shown == [f"| {ast.get_docstring(test)} |" for test in tests]
