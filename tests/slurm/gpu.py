"""Prints which GPU a process of srun takes, on nodes whose GPUs are only names."""

from __future__ import annotations

import os

import torch

from mergestream.compose.build import device_of
from mergestream.runtime.processes import placement

visible = os.environ["CUDA_VISIBLE_DEVICES"]
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: len(visible.split(","))
here = placement()
print(f"{here.rank} of {here.size}: GPU {visible}, {device_of('auto')}")
