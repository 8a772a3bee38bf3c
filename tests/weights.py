"""Small checkpoints, and what a merge makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mergestream import strategies
from mergestream.merging import merge_checkpoints
from mergestream.runtime.errors import UserError

DATA_FREE = [name for name in strategies.names() if strategies.get(name).needs is None]  # need checkpoints alone
# Options for small weights, and few steps of those that descend gradients.
QUICK: dict[str, dict[str, Any]] = {
    "wudi": {"steps": 3},
    "dop": {"steps": 3},
    "nufilt": {"layers": [""], "null_rank": 1, "task_rank": 1, "rank": 1, "steps": 3},
}


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal random values."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def write(folder: Path, *states: Mapping[str, Tensor]) -> list[Path]:
    """Write one .safetensors file for each state dict; return their paths."""
    paths = [folder / f"{i}.safetensors" for i in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return paths


def merge(
    folder: Path, base: Path, *checkpoints: Path, strategy: str = "average", **options: Any
) -> tuple[dict[str, Tensor], list[str]]:
    """Return the merged tensors of files, and what the merge says."""
    said: list[str] = []
    out = folder / "out.safetensors"
    merge_checkpoints(base, checkpoints, strategy, out, say=said.append, **options)
    return load_file(out), said


def refused(folder: Path, message: str, base: Path, *checkpoints: Path, **options: Any) -> None:
    """Check that a merge fails with one line and writes nothing."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        merge(folder, base, *checkpoints, **options)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before
