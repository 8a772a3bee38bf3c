"""DDP from inside a Hydra job: N processes by torch's elastic launch, for single runs and for every job of a sweep.

Lightning's own launcher starts the script again in every child, and with it the whole sweep; here only `function`
runs in the children, and Lightning finds the process group's environment set.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import SLURMEnvironment

from mergestream.runtime import interrupt, processes
from mergestream.runtime.errors import UserError, one_line
from mergestream.runtime.processes import cores


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


def launch(function: Callable[[DictConfig], None], cfg: DictConfig, devices: int, max_restarts: int = 0) -> None:
    """Call ``function(cfg)`` here, or in `devices` new processes of one process group.

    Under a launcher that has already made the processes (torchrun, srun), call it here.

    Args:
        function: called in every process; it goes on from what is on disk.
        cfg: its argument.
        devices: number of processes.
        max_restarts: how often all of them are started again after one has died, or has kept the others waiting.

    Raises:
        UserError: the one that a process raised.
        Stopped: if a signal asked to stop.
        RuntimeError: if a process failed in another way.
    """
    if devices == 1 or world() != (1, 1):
        function(cfg)
        return
    # A failure is raised below, once, with the message of the process; the agent would print its own story of it.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for restarts in range(max_restarts + 1):
        lost = _attempt(function, cfg, devices)
        if lost is None:
            return
        if restarts < max_restarts:
            print(f"{lost}; starting all {devices} again ({restarts + 1} of {max_restarts})", file=sys.stderr)
    raise UserError(f"{lost}, after {max_restarts} restarts (launcher.max_restarts). What was saved is kept.")


def _attempt(function: Callable[[DictConfig], None], cfg: DictConfig, devices: int) -> str | None:
    """One start of all processes; what happened if one was lost, None if they did their work.

    A fresh launch each time, rather than the agent's own restart: that would meet the addresses of dead processes.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    known = {field.name for field in fields(LaunchConfig)}  # older ones read the environment
    signals: dict[str, Any] = {"signals_to_handle": "SIGHUP,SIGQUIT"} if "signals_to_handle" in known else {}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        **signals,
    )
    try:
        with _forwarding() as asked:
            elastic_launch(config, _worker)(function, OmegaConf.to_container(cfg), cores() // devices)
        return None
    except ChildFailedError as error:
        failures = [(rank, failure.exitcode, str(failure.message)) for rank, failure in error.failures.items()]
    # One process takes others with it: what it says counts, before what they say about it.
    for kind, make in (("UserError: ", UserError), ("Stopped: ", _stopped)):
        for _, _, message in failures:
            if message.startswith(kind):
                raise make(message.removeprefix(kind)) from None
    if asked:  # they were still starting
        raise interrupt.Stopped(asked[-1])
    for rank, code, _ in failures:
        if code < 0:
            return f"process {rank} of {devices} was ended by {signal.Signals(-code).name}"
    for rank, _, message in failures:
        if not message.startswith("Lost: "):
            raise RuntimeError(f"process {rank} of {devices} failed:\n{message}") from None
    return f"a process of {devices} does not answer any more ({failures[0][2].removeprefix('Lost: ')})"


def _stopped(message: str) -> interrupt.Stopped:
    number, _, text = message.partition(" ")
    return interrupt.Stopped(int(number), text)


@contextmanager
def _forwarding() -> Iterator[list[int]]:
    """Pass signals on to the processes, which save their work and say so; the agent would give them 30 seconds.

    Yields:
        The signals that have come.
    """
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def forward(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        if not (children := multiprocessing.active_children()):
            raise interrupt.Stopped(number)
        for child in children:
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    before = {number: signal.signal(number, forward) for number in interrupt.SIGNALS}
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = "SIGHUP,SIGQUIT"
    try:
        yield asked
    finally:
        os.environ.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)
        for number, handler in before.items():
            signal.signal(number, handler)


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


def join(device: torch.device, timeout_minutes: float) -> tuple[int, int]:
    """(rank, world size) of this process, in a process group if there is more than one; Lightning takes it over.

    Args:
        device: of this process.
        timeout_minutes: after which a process that the others wait for counts as hung.
    """
    local, nodes = world()
    if local * nodes == 1:
        return 0, 1
    rank = processes.rank()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        if "MASTER_ADDR" not in os.environ:  # srun sets none; Lightning knows how to make one
            slurm = SLURMEnvironment()
            os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}
        backend = "nccl" if device.type == "cuda" else "gloo"
        timeout = timedelta(minutes=timeout_minutes)
        dist.init_process_group(backend, rank=rank, world_size=local * nodes, timeout=timeout)
    return rank, local * nodes


def _worker(function: Callable[[DictConfig], None], config: dict[str, Any], threads: int) -> None:
    torch.set_num_threads(max(1, threads))
    try:
        with interrupt.watching():
            function(OmegaConf.create(config))
    except BaseException as error:
        # The agent kills the other processes as soon as this one ends; what it reads about it is in this file.
        if isinstance(error, interrupt.Stopped):
            _report(f"Stopped: {int(error.signum)} {error.message}")
        elif (plain := one_line(error)) is not None:
            _report(f"UserError: {plain}")
        elif _is_lost(error):
            _report(f"Lost: {str(error).strip().splitlines()[0]}")
        else:
            _report(traceback.format_exc())
        sys.exit(1)


def _is_lost(error: BaseException) -> bool:
    """Whether a collective failed because another process has died or hangs; gloo has no class for it."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out", "NCCL")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def _report(text: str) -> None:
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        Path(path).write_text(json.dumps({"message": text, "timestamp": 0}))
