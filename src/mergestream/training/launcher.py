"""DDP from inside a Hydra job: N processes by torch's elastic launch, for single runs and for every job of a sweep.

Lightning's own launcher starts the script again in every child, and with it the whole sweep; here only `function`
runs in the children, and Lightning finds the process group's environment set.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import SLURMEnvironment

from mergestream import machine
from mergestream.errors import UserError, one_line
from mergestream.machine import cores


def device_count(devices: int | str, accelerator: str) -> int:
    """Number of processes that ``devices`` means on this machine.

    Raises:
        UserError: if there are not that many, or the value is no positive number.
    """
    gpus = torch.cuda.device_count()
    if accelerator == "gpu" and not gpus:
        raise UserError("accelerator=gpu needs a GPU that PyTorch sees, and there is none. Write accelerator=cpu.")
    on_gpu = gpus > 0 and accelerator != "cpu"
    available, kind = (gpus, "GPUs") if on_gpu else (cores(), "CPU cores")
    if devices == "auto":
        return gpus if on_gpu else 1
    if not isinstance(devices, int) or isinstance(devices, bool) or not 1 <= devices <= available:
        raise UserError(
            f"devices must be auto or between 1 and the number of {kind} here, {available}; got devices={devices}"
        )
    return devices


def launch(function: Callable[[DictConfig], None], cfg: DictConfig, devices: int) -> None:
    """Call ``function(cfg)`` here, or in `devices` new processes of one process group.

    Under a launcher that has already made the processes (torchrun, srun), call it here.

    Raises:
        UserError: the one that a process raised.
        RuntimeError: if a process failed in another way.
    """
    if devices == 1 or world() != (1, 1):
        function(cfg)
        return
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
    )
    # A failure is raised below, once, with the message of the process; the agent would print its own story of it.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        elastic_launch(config, _worker)(function, OmegaConf.to_container(cfg), cores() // devices)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        message = str(failure.message)
        if message.startswith("UserError: "):
            raise UserError(message.removeprefix("UserError: ")) from None
        raise RuntimeError(f"process {rank} of {devices} failed:\n{message}") from None


def world() -> tuple[int, int]:
    """(processes per node, nodes) of the launcher that started this process; (1, 1) without one."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:  # elastic launch, torchrun
        local = int(env["LOCAL_WORLD_SIZE"])
        return local, int(env["WORLD_SIZE"]) // local
    if "SLURM_PROCID" in env and env.get("SLURM_JOB_NAME") not in (
        "bash",
        "interactive",
    ):  # srun, as Lightning reads it
        nodes = int(env.get("SLURM_NNODES", 1))
        return int(env.get("SLURM_NTASKS", 1)) // nodes, nodes
    return 1, 1


def local_rank() -> int:
    """Number of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def join(device: torch.device) -> tuple[int, int]:
    """(rank, world size) of this process, in a process group if there is more than one; Lightning takes it over."""
    local, nodes = world()
    if local * nodes == 1:
        return 0, 1
    rank = machine.rank()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        if "MASTER_ADDR" not in os.environ:  # srun sets none; Lightning knows how to make one
            slurm = SLURMEnvironment()
            os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=local * nodes)
    return rank, local * nodes


def _worker(function: Callable[[DictConfig], None], config: dict[str, Any], threads: int) -> None:
    torch.set_num_threads(max(1, threads))
    try:
        function(OmegaConf.create(config))
    except BaseException as error:
        # The agent kills the other processes as soon as this one ends; what it reads about it is in this file.
        plain = one_line(error)
        _report(traceback.format_exc() if plain is None else f"UserError: {plain}")
        sys.exit(1)


def _report(text: str) -> None:
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(path).write_text(json.dumps({"message": text, "timestamp": 0}))
