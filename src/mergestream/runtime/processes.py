"""Which process this is, among how many, and what they do together."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from mergestream.runtime.errors import UserError

T = TypeVar("T")


def cores() -> int:
    """Return the number of CPU cores that this process may use; on a cluster that can be a share of the node."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rank() -> int:
    """Return the number of this process among all that its launcher started; 0 without a launcher."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))


def say(message: str) -> None:
    """Print a line to stderr, on the first of all processes alone."""
    if rank() == 0:
        print(message, file=sys.stderr)


def local_rank() -> int:
    """Return the number of this process on its node."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0)))


def world() -> tuple[int, int]:
    """Return (processes per node, nodes) as the launcher of this process says; (1, 1) without a launcher."""
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:  # elastic launch, torchrun
        local = int(env["LOCAL_WORLD_SIZE"])
        return local, int(env["WORLD_SIZE"]) // local
    # Lightning, too, takes an interactive shell for no launcher.
    if "SLURM_PROCID" in env and env.get("SLURM_JOB_NAME") not in ("bash", "interactive"):
        nodes = int(env.get("SLURM_NNODES", 1))
        return int(env.get("SLURM_NTASKS", 1)) // nodes, nodes
    return 1, 1


@contextmanager
def environment(name: str, value: str) -> Iterator[None]:
    """Set an environment variable within the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


_works_alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Within the block, work as if this were the only process, though it may have joined a group."""
    global _works_alone
    _works_alone = True
    try:
        yield
    finally:
        _works_alone = False


def grouped() -> bool:
    """Return whether this process works together with those of a process group."""
    import torch.distributed as dist  # takes seconds, and a report needs no torch

    return not _works_alone and dist.is_available() and dist.is_initialized()


def shard() -> tuple[int, int]:
    """Return (rank, world size) in the process group; (0, 1) without a group."""
    import torch.distributed as dist

    return (dist.get_rank(), dist.get_world_size()) if grouped() else (0, 1)


def is_first() -> bool:
    """Return whether this is the process that writes files and prints."""
    return shard()[0] == 0


def barrier() -> None:
    """Wait until every process of the group is here."""
    import torch.distributed as dist

    if grouped():
        dist.barrier()


def first_alone(work: Callable[[], T]) -> T:
    """Return the result of `work` on every process. The others start when the first has finished or failed."""
    import torch.distributed as dist

    if not grouped():
        return work()
    # A group of its own: a download may take longer than the collectives of the training may.
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=2))
    try:
        if not is_first():
            dist.barrier(group)
        return work()
    finally:
        if is_first():
            dist.barrier(group)


def from_first(work: Callable[[], T]) -> T:
    """Return on every process what `work` returns on the first, which alone calls it.

    Raises:
        UserError: on every process, if `work` raises one.
    """
    import torch.distributed as dist

    if not grouped():
        return work()
    group: Any = dist.new_group(backend="gloo", timeout=timedelta(days=2))
    found: list[Any] = [None, None]
    error: UserError | None = None
    if is_first():
        try:
            found[0] = work()
        except UserError as raised:
            error, found[1] = raised, str(raised)
    dist.broadcast_object_list(found, src=0, group=group)
    if found[1] is not None:
        raise error or UserError(found[1])
    return found[0]
