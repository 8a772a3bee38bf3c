"""Merging checkpoints is a small library: it loads neither the training nor anything of it."""

from __future__ import annotations

import subprocess
import sys

import torch
from safetensors.torch import save_file

CODE = """
import sys
import numpy, safetensors.torch, torch, xxhash
known = {name.partition(".")[0] for name in sys.modules} | sys.stdlib_module_names | {"mergestream"}
from mergestream import strategies
from mergestream.merging import merge_checkpoints
for name in strategies.names():
    strategies.get(name)
merge_checkpoints("0.safetensors", ["1.safetensors"], "ties", "m.safetensors")
print(*sorted({name.partition(".")[0] for name in sys.modules} - known))
print(*sorted({name.split(".")[1] for name in sys.modules if name.startswith("mergestream.")}))
"""


def test_merging_checkpoints_loads_torch_numpy_safetensors_and_xxhash_alone(tmp_path):
    for index in range(2):
        save_file({"w": torch.full((3,), float(index))}, tmp_path / f"{index}.safetensors")
    done = subprocess.run([sys.executable, "-c", CODE], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    packages, rooms = done.stdout.split("\n")[:2]
    assert packages == ""
    assert rooms.split() == ["merging", "runtime", "strategies"]
