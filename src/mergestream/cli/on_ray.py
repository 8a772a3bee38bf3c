"""Tasks of Ray: each runs a part of a sweep in a process of its own; see `Parts`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergestream.cli.listed import Parts, counted, divided
from mergestream.runtime import interrupt, lock, processes
from mergestream.runtime.errors import UserError, first_line
from mergestream.runtime.interrupt import Stopped
from mergestream.runtime.rules import is_number, is_whole, require_bool

AUTO = "auto"
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
ANSWER = 10.0  # seconds within which a cluster must answer
LOOK = 0.5  # seconds until a signal is noticed
PATIENCE = 600.0  # seconds that stopped tasks have to save their work
AGAIN = 3  # how often Ray starts a task again whose worker or node was lost; it continues where it stopped
LOOPBACK = "127.0.0.2"  # Ray takes 127.0.0.1 for the address of the machine in its network
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")  # what Ray sets for a task
# Has Linux send a command SIGTERM, at which it saves its work, when the worker of Ray that started it dies.
FOLLOW = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 15); os.execv(sys.argv[1], sys.argv[1:])"


@dataclass(frozen=True)
class Asked:
    """What each task asks for.

    Args:
        each: jobs of the sweep in a task.
        cpus, gpus: which Ray reserves.
        memory: bytes that Ray reserves; None is none.
    """

    each: int
    cpus: int
    gpus: float
    memory: int | None

    def __str__(self) -> str:
        memory = "" if self.memory is None else f", {self.memory / UNITS['G']:.3g} GiB of memory"
        return f"{counted(self.cpus, 'CPU')} and {counted(self.gpus, 'GPU')}{memory}"


@contextmanager
def started(cluster: Mapping[str, Any]) -> Iterator[Any]:
    """Yield Ray, connected to the cluster at ``cluster.address``, or started on this machine for the block.

    Raises:
        UserError: if Ray is not installed or not at the address, or a key breaks its rule.
    """
    require_bool("cluster.dry_run", cluster["dry_run"])
    try:
        import ray
    except ImportError:
        raise UserError("cluster=ray needs Ray, which is not installed. Type: pip install 'mergestream[ray]'") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = cluster["address"]
    if address not in (None, "auto"):
        _require_reachable(str(address))
    alone = {} if address else {"include_dashboard": False, "_node_ip_address": LOOPBACK}
    handlers = {number: signal.getsignal(number) for number in interrupt.SIGNALS}
    try:
        ray.init(address=address or "local", log_to_driver=False, logging_level="ERROR", **alone)
        for number, handler in handlers.items():  # Ray installs its own, which end this process at once
            signal.signal(number, handler)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(f"Ray does not start with cluster.address={address}: {first_line(error)}") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _require_reachable(address: str) -> None:
    """Check that somebody answers, since Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), ANSWER).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"cluster.address must be auto, HOST:PORT or ray://HOST:PORT of a running cluster; got {address}: {error}"
        ) from error


def asked(ray: Any, cluster: Mapping[str, Any], small: bool) -> Asked:
    """Check the config group and return what each task asks for.

    Args:
        ray: connected.
        cluster: the config group.
        small: whether the jobs are those of small models, which share a task unless they have a GPU.

    Raises:
        UserError: if a key breaks its rule, or no node has as much.
    """
    for key in ("cpus", "jobs_per_node"):
        if (value := cluster[key]) != AUTO and (not is_whole(value) or value < 1):
            raise UserError(f"cluster.{key} must be a whole number, 1 or more, or auto; got cluster.{key}={value}")
    gpus = cluster["gpus"]
    if gpus != AUTO and not (is_number(gpus) and gpus >= 0 and (gpus < 1 or float(gpus).is_integer())):
        raise UserError(f"cluster.gpus must be 0, a share of one GPU, a whole number, or auto; got cluster.gpus={gpus}")
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    largest = max(nodes, key=lambda node: (node.get("GPU", 0), node.get("CPU", 0)))
    if gpus == AUTO:
        gpus = 0 if small else min(1, largest.get("GPU", 0))
    each = cluster["jobs_per_node"]
    if each == AUTO:
        each = cluster["cpus"] if small and not gpus and cluster["cpus"] != AUTO else 1
    cpus = cluster["cpus"]
    if cpus == AUTO:
        share = gpus / largest["GPU"] if gpus and largest.get("GPU") else 1.0
        cpus = each if small else max(each, int(largest.get("CPU", 1) * share), 1)
    memory = _bytes(cluster["memory"])
    _require_node(nodes, {"cpus": ("CPU", cpus), "gpus": ("GPU", gpus), "memory": ("memory", memory or 0)}, cluster)
    return Asked(each, cpus, float(gpus), memory)


def _require_node(
    nodes: Sequence[Mapping[str, float]], wanted: Mapping[str, tuple[str, float]], cluster: Mapping[str, Any]
) -> None:
    """Check that one node has all that a task asks for: Ray would wait for such a node for ever.

    Args:
        nodes: the resources of each, in Ray's names.
        wanted: for each key of the config group, the resource and how much.
        cluster: the config group.
    """
    for key, (name, value) in wanted.items():
        most = max(node.get(name, 0) for node in nodes)
        if value > most:
            said = f"{most / UNITS['G']:.3g}G" if key == "memory" else f"{most:g}"
            given = cluster[key] if key == "memory" else value
            raise UserError(f"cluster.{key} must be at most {said}, which a node of Ray has; got cluster.{key}={given}")
    if not any(all(node.get(name, 0) >= value for name, value in wanted.values()) for node in nodes):
        given = {key: cluster[key] if key == "memory" else value for key, (_, value) in wanted.items() if value}
        named = ", ".join(f"cluster.{key}={value}" for key, value in given.items())
        raise UserError(f"one node of Ray must have all that a task asks for, and none has; got {named}")


def run(ray: Any, jobs: Sequence[Sequence[str]], common: Sequence[str], asked: Asked, folder: Path) -> list[str]:
    """Run the jobs of a sweep, and return the errors of those that failed.

    Args:
        ray: connected.
        jobs: the overrides of each.
        common: overrides of Hydra's own for all.
        asked: what each task asks for.
        folder: where the files of the parts and their logs are; all nodes must see it.

    Raises:
        Stopped: at a signal, when the tasks have saved their work.
    """
    parts, environment = divided(jobs, asked.each, common, folder), _environment(asked)
    need = {"num_cpus": asked.cpus, "num_gpus": asked.gpus, "max_retries": AGAIN}
    need |= {} if asked.memory is None else {"memory": asked.memory}
    work = ray.remote(**need)(_work)
    part_of = {
        work.remote(parts.command(part), environment, os.getcwd(), str(parts.log(part))): part
        for part in range(len(parts.numbers))
    }
    print(f"{counted(len(jobs), 'job')} in {counted(len(part_of), 'task')} of Ray; logs in {parts.folder}")
    errors: dict[int, list[str]] = {}
    waiting = list(part_of)
    with _noted() as received:
        while waiting and not received:
            ended, waiting = ray.wait(waiting, timeout=LOOK)
            for task in ended:
                errors[part_of[task]] = _errors(ray, task, parts, part_of[task])
        if received:
            for task in waiting:
                ray.cancel(task)
            _, late = ray.wait(waiting, num_returns=len(waiting), timeout=PATIENCE)
            raise _stopped(received[-1], parts, len(late))
    return [line for part in sorted(errors) for line in errors[part]]


def _stopped(signum: int, parts: Parts, late: int) -> Stopped:
    """Return what to raise when the tasks have ended, but for some that were too late to."""
    saved = sum(_saved(str(parts.log(part))).exists() for part in range(len(parts.numbers)))
    tasks = f"{saved} of {counted(len(parts.numbers), 'task')} of Ray"
    said = f"stopped by {signal.Signals(signum).name}; {tasks} saved something new. "
    if late:
        said += f"{late} had not ended {PATIENCE / 60:g} minutes later. "
    return Stopped(signum, f"{said}Type the same command again to continue from what is saved", bool(saved))


def _saved(log: str) -> Path:
    """Return the file that a task makes which has saved something new."""
    return Path(f"{log}.saved")


def _errors(ray: Any, task: Any, parts: Parts, part: int) -> list[str]:
    """Return why a task failed that has ended; nothing if it has not."""
    try:
        code = ray.get(task)
    except ray.exceptions.RayTaskError as error:  # it could not start its command
        return parts.why(part, f"failed ({first_line(error.cause or error)})")
    except ray.exceptions.RayError as error:
        return parts.why(part, f"Ray lost it ({first_line(error)})")
    return parts.why(part, f"exit code {code}") if code else []


@contextmanager
def _noted() -> Iterator[list[int]]:
    """Note the signals that ask to stop, within the block: an exception from a handler would break Ray's own code."""
    received: list[int] = []
    before = {
        number: signal.signal(number, lambda caught, _frame: received.append(caught)) for number in interrupt.SIGNALS
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _environment(asked: Asked) -> dict[str, str]:
    """Return the environment of a task: that of this command, as on SLURM, with the resources that Ray reserves."""
    # The command that starts the sweep has Hydra raise what jobs shall print on one line.
    # GPUs are those of the node: Ray names them to the task.
    environment = {name: value for name, value in os.environ.items() if name not in ("HYDRA_FULL_ERROR", *VISIBLE)}
    environment.setdefault("OMP_NUM_THREADS", "1" if asked.each > 1 else str(asked.cpus))
    return environment | {processes.CORES: str(asked.cpus)} | ({} if asked.gpus else dict.fromkeys(VISIBLE, ""))


def _work(command: list[str], environment: dict[str, str], folder: str, log: str) -> int:
    """Run a command on a node of Ray and return its exit code. A task that is cancelled lets it save its work."""
    with open(f"{log}.starts", "ab") as starts:
        starts.write(b"\n")
    again = os.path.getsize(starts.name) - 1
    visible = {name: os.environ[name] for name in VISIBLE if name in os.environ}
    # A task without GPUs has empty values in `environment`, which Ray may not have set.
    environment = {**visible, **environment, lock.TASK: f"{log} {again}", interrupt.SAVED: str(_saved(log))}
    follow = [sys.executable, "-c", FOLLOW] if sys.platform == "linux" else []
    with open(log, "ab") as out:
        process = subprocess.Popen(
            [*follow, *command], cwd=folder, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        while process.poll() is None:  # Ray cancels a task with an exception, which a longer wait would not notice
            time.sleep(LOOK)
        return process.returncode
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _bytes(memory: Any) -> int | None:
    """Return an amount of memory such as 32G in bytes."""
    if memory is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT])B?", str(memory))
    if not found:
        raise UserError(f"cluster.memory must be a number with K, M, G or T, such as 32G; got cluster.memory={memory}")
    return int(float(found[1]) * UNITS[found[2]])
