"""What several test files use."""

from __future__ import annotations

import contextlib
import io
import runpy
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from safetensors.torch import load_file

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str


def command(script: str, *arguments: str) -> Outcome:
    """Run an entry script as ``python script arguments`` would, in this process: imports are paid once."""
    out, err, argv, code = io.StringIO(), io.StringIO(), sys.argv, 0
    sys.argv = [str(ROOT / script), *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    finally:
        sys.argv = argv
    return Outcome(code, out.getvalue(), err.getvalue())


def config(name: str, *overrides: str) -> DictConfig:
    """A composed config."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def golden(name: str) -> dict[str, dict[str, torch.Tensor]]:
    """A golden safetensors file, by the first part of its keys."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(GOLDEN / name).items():
        group, _, rest = key.rpartition("/")
        groups.setdefault(group, {})[rest] = tensor
    return groups


def files_below(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file()]
