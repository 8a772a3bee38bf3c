"""What several test files use."""

from __future__ import annotations

import atexit
import contextlib
import functools
import io
import runpy
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from PIL import Image
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


@functools.cache
def noise() -> tuple[str, ...]:
    """Overrides for three tasks of two classes of noise, each with 54 training and 12 test images, for what is about
    bits and files rather than learning."""
    folder, draw = Path(tempfile.mkdtemp(prefix="noise-")), np.random.default_rng(0)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for split, count in (("train", 27), ("test", 6)):
        for label in ("one", "two", "three", "four", "five", "six"):
            for number in range(count):
                path = folder / split / label / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    words = ("dataset=folder", f"dataset.path={folder}", "model=tiny", "schedule=fraction", "optimizer.lr=3e-4")
    return (*words, "tasks=3", "batch_size=16")


def apart(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor], start: Mapping[str, torch.Tensor]) -> float:
    """How far two trained models are apart, as a share of how far the first came from the start.

    Of `noise` in one process and in two it is 3e-5 to 5e-4; with one image more in each batch it is 0.3.
    """

    def distance(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
        return sum((a[name] - b[name]).double().square().sum().item() for name in a) ** 0.5

    return distance(one, two) / distance(one, start)


def golden(name: str) -> dict[str, dict[str, torch.Tensor]]:
    """A golden safetensors file, by the first part of its keys."""
    groups: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(GOLDEN / name).items():
        group, _, rest = key.rpartition("/")
        groups.setdefault(group, {})[rest] = tensor
    return groups


def files_below(path: Path) -> list[Path]:
    return [p for p in path.rglob("*") if p.is_file()]
