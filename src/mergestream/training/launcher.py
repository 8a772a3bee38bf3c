"""DDP from inside a Hydra job: starts N processes for a single run, and for every job of a sweep.

Lightning's own launcher would start the whole script again in every child, and with it the whole sweep. Here the
children run only one function, and Lightning finds the environment of the process group.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from mergestream.runtime import fork_server, interrupt, processes
from mergestream.runtime.errors import AgreedError, ProcessError, UserError, first_line, one_line
from mergestream.runtime.interrupt import Signals, Stopped
from mergestream.runtime.processes import cores, placement
from mergestream.training.environment import meeting_point

# The agent must leave the other signals to us.
AGENT_SIGNALS = "SIGHUP,SIGQUIT"


@dataclass(frozen=True)
class Failure:
    """How a process ended; this is sent to the parent as JSON.

    Args:
        kind: ``user`` for a `UserError`, ``stopped`` by a signal, ``lost`` contact with another process, or ``bug``.
        text: the message, or the traceback of a bug.
        signum: the signal, if one stopped the process.
        saved: whether the process had saved something new.
    """

    kind: str
    text: str
    signum: int = 0
    saved: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Return the failure that an exception of a worker means."""
        if isinstance(error, Stopped):
            return cls("stopped", error.message, int(error.signum), error.saved)
        if (line := one_line(error)) is not None:
            return cls("user", line)
        if _lost_contact(error):
            return cls("lost", first_line(error))
        return cls("bug", traceback.format_exc())

    @classmethod
    def read(cls, message: str) -> Failure:
        """Return the failure in a message of the agent; one that a worker did not write is a bug."""
        try:
            return cls(**json.loads(message))
        except (ValueError, TypeError):
            return cls("bug", message)


def device_count(devices: int | str, accelerator: str) -> int:
    """Return the number of processes that ``devices`` means on this machine.

    Raises:
        UserError: if there are not that many devices, the value is not a positive number, or a launcher has started
            another number of processes.
    """
    here = placement()
    if here.size > 1:
        if isinstance(devices, bool) or devices not in ("auto", here.size, here.local_size):
            raise UserError(
                f"devices must be the number of processes that {here.launcher} started, {here.size} "
                f"({here.local_size} on this node); got devices={devices}. Leave it out, or start that many."
            )
        return here.local_size
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


def launch(
    function: Callable[..., None], *arguments: Any, devices: int, max_restarts: int = 0, signals: Signals
) -> None:
    """Call ``function(*arguments, signals)`` here, or in `devices` new processes of one process group.

    Under a launcher that has already started the processes (torchrun, srun), it is called here.

    Args:
        function: runs in every process, and continues from what is on disk.
        arguments: picklable.
        devices: number of processes.
        max_restarts: how often all processes are started again after one died or hung.
        signals: those of this process; each new process gets its own.

    Raises:
        UserError: if a process raised one.
        Stopped: if a signal arrived.
        RuntimeError: if a process failed in another way.
    """
    if placement().size > 1:
        _join_in(function, arguments, signals)
        return
    if devices == 1:
        function(*arguments, signals)
        return
    # Failures are raised below, with the message of the process; the agent would print its own report as well.
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    for restarts in range(max_restarts + 1):
        lost = _attempt(function, arguments, devices, signals)
        if lost is None:
            return
        if restarts < max_restarts:
            print(f"{lost}; starting all {devices} again ({restarts + 1} of {max_restarts})", file=sys.stderr)
    raise UserError(f"{lost}, after {max_restarts} restarts (launcher.max_restarts). Saved work is kept.")


def join(device: torch.device, timeout_minutes: float) -> None:
    """Join the process group, if there is more than one process; Lightning takes it over.

    Args:
        device: of this process.
        timeout_minutes: how long a process may keep the others waiting before it counts as hung.

    Raises:
        UserError: if those of srun do not find each other.
    """
    here = placement()
    if here.size == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    os.environ |= meeting_point() if here.launcher == "srun" else {}
    backend = "nccl" if device.type == "cuda" else "gloo"
    timeout = timedelta(minutes=timeout_minutes)
    try:
        dist.init_process_group(backend, rank=here.rank, world_size=here.size, timeout=timeout)
    except dist.DistError as error:
        if here.launcher != "srun":  # `launch` starts lost processes again
            raise
        raise UserError(
            f"{here.size} processes cannot meet at {os.environ['MASTER_ADDR']}, port {os.environ['MASTER_PORT']} "
            f"({first_line(error)}). If another program uses the port, set MASTER_PORT to a free one."
        ) from error


def _join_in(function: Callable[..., None], arguments: tuple[Any, ...], signals: Signals) -> None:
    """Call `function` in this process, which a launcher has started beside others.

    Raises:
        AgreedError: if all processes know the error.
        ProcessError: if this one met an error that the others may not know, or lost contact with them.
    """
    here = placement()
    if here.launcher == "srun" and "OMP_NUM_THREADS" not in os.environ:  # torchrun sets it
        torch.set_num_threads(processes.share())
    try:
        function(*arguments, signals)
    except AgreedError:
        raise
    except Exception as error:
        line = one_line(error)
        if line is None and _lost_contact(error):
            line = f"lost contact with another process, which may say why ({first_line(error)}). Saved work is kept."
        if line is None:
            raise
        name = f"process {here.rank} of {here.size}, on {socket.gethostname()}: "
        raise ProcessError(name * bool(here.rank) + line) from None


def _attempt(function: Callable[..., None], arguments: tuple[Any, ...], devices: int, signals: Signals) -> str | None:
    """Start all processes once. Return None if they succeeded, or what happened if one was lost.

    Each attempt is a new launch, since a restart by the agent would meet the addresses of dead processes.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    known = {field.name for field in fields(LaunchConfig)}  # older versions read the environment
    options: dict[str, Any] = {"signals_to_handle": AGENT_SIGNALS} if "signals_to_handle" in known else {}
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=devices,
        start_method=fork_server.START_METHOD,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        **options,
    )
    fork_server.start(["mergestream.training.run", function.__module__])
    try:
        with _forwarding() as received:
            saved = elastic_launch(config, _worker)(function, arguments, cores() // devices, dict(os.environ))
        signals.saved |= any(saved.values())
        return None
    except ChildFailedError as error:
        failures = [(rank, f.exitcode, Failure.read(str(f.message))) for rank, f in error.failures.items()]
    return _explain(failures, received, devices)


def _explain(failures: list[tuple[int, int, Failure]], received: list[int], devices: int) -> str:
    """Raise the error of the process that failed first, or return how a process was lost.

    A failing process takes others with it, so its own message counts before what they say about it.

    Args:
        failures: (rank, exit code, failure) of each process that failed.
        received: the signals that this process received.
        devices: number of processes.
    """
    for _, _, failure in failures:
        if failure.kind == "user":
            raise UserError(failure.text) from None
    for _, _, failure in failures:
        if failure.kind == "stopped":
            raise Stopped(failure.signum, failure.text, failure.saved) from None
    if received:  # while the processes were still starting
        raise Stopped(received[-1]) from None
    for rank, code, _ in failures:
        if code < 0:
            return f"process {rank} of {devices} was ended by {signal.Signals(-code).name}"
        if code == fork_server.ENDED:
            return f"the server that started the {devices} processes was ended"
    for rank, _, failure in failures:
        if failure.kind != "lost":
            raise RuntimeError(f"process {rank} of {devices} failed:\n{failure.text}") from None
    return f"a process of {devices} no longer answers ({failures[0][2].text})"


@contextmanager
def _forwarding() -> Iterator[list[int]]:
    """Pass signals on to the processes, which save their work and say so; the agent would give them 30 seconds.

    Yields:
        The list of signals that have arrived.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if not (children := multiprocessing.active_children()):
            raise Stopped(number)
        for child in children:
            if child.pid is not None:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    before = {number: signal.signal(number, forward) for number in interrupt.SIGNALS}
    with processes.environment("TORCHELASTIC_SIGNALS_TO_HANDLE", AGENT_SIGNALS):  # what older versions of torch read
        try:
            yield received
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _worker(
    function: Callable[..., None], arguments: tuple[Any, ...], threads: int, environment: dict[str, str]
) -> bool:
    """Run `function` in a new process, and leave a `Failure` for the parent if it raises.

    Returns:
        Whether it saved something new.
    """
    torch.set_num_threads(max(1, threads))
    try:
        with interrupt.watching() as signals:
            fork_server.enter(environment)
            function(*arguments, signals)
        return signals.saved
    except BaseException as error:
        failure = Failure.of(error)
        if failure.kind == "lost":  # the agent reports the process that ends first: let that be the one that was lost
            time.sleep(1)
        # The agent reads this file, and kills the other processes as soon as this one ends.
        if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
            message = json.dumps(asdict(failure))
            with suppress(FileNotFoundError):  # the launcher has ended, and nobody asks
                Path(path).write_text(json.dumps({"message": message, "timestamp": 0}))
        sys.exit(1)


def _lost_contact(error: BaseException) -> bool:
    """Return whether a collective failed because another process died or hangs; gloo has no class for it."""
    if isinstance(error, dist.DistError):
        return True
    words = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out", "NCCL")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
