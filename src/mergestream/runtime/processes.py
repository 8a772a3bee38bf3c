"""Which process this is, among how many, and what they do together."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mergestream.runtime.errors import AgreedError, one_line

if TYPE_CHECKING:  # torch takes seconds to import
    from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Placement:
    """Which process this is, among all that its launcher started.

    Args:
        launcher: ``torchrun``, whose variables `launch` sets too; ``srun``; or None, which is a process of its own.
        rank: number of the process.
        size: number of processes.
        local_rank: number of the process on its node.
        local_size: number of processes on its node.
    """

    launcher: str | None = None
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1


def placement() -> Placement:
    """Return the placement that the variables of the launcher say.

    Of SLURM's variables only those of a step count. A batch script, and a shell of salloc, have SLURM_NTASKS,
    SLURM_PROCID and SLURM_LOCALID as well, and run one process all the same.
    """
    env = os.environ
    if "LOCAL_WORLD_SIZE" in env:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return Placement("torchrun", *(int(env[name]) for name in names))
    if (size := int(env.get("SLURM_STEP_NUM_TASKS", 1))) > 1:
        node = int(env["SLURM_NODEID"])
        local_size = _tasks_per_node(env["SLURM_STEP_TASKS_PER_NODE"])[node]
        return Placement("srun", int(env["SLURM_PROCID"]), size, int(env["SLURM_LOCALID"]), local_size)
    return Placement()


def rank() -> int:
    """Return the number of this process among all that its launcher started; 0 without a launcher."""
    return placement().rank


def say(message: str) -> None:
    """Print a line to stderr, on the first of all processes alone."""
    if rank() == 0:
        print(message, file=sys.stderr)


CORES = "MERGESTREAM_CORES"  # the environment variable with the number of CPU cores of a task of Ray
_side_by_side = 1  # jobs of a sweep, of which this process runs one


def share_cores(jobs: int) -> None:
    """Let this process count its share of the cores alone, beside those of other jobs of its sweep."""
    global _side_by_side
    _side_by_side = jobs


def cores() -> int:
    """Return the number of CPU cores that this process and its neighbours may use; in a job, those of the job."""
    ours = min(int(os.environ.get(name, sys.maxsize)) for name in ("SLURM_CPUS_ON_NODE", CORES))
    return max(1, min(_affinity(), ours) // _side_by_side)


def share() -> int:
    """Return the number of CPU cores that this process may use, beside the others of its launcher on the node."""
    here, all_here = placement(), cores()
    bound = here.launcher == "srun" and _affinity() < int(os.environ.get("SLURM_CPUS_ON_NODE", 0))
    return all_here if bound else max(1, all_here // here.local_size)  # srun may have bound each process to its own


def _affinity() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks_per_node(text: str) -> list[int]:
    """Return how many tasks each node has, which SLURM writes as ``2(x3),1``."""
    parts = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part) for part in text.split(",")]
    return [int(part[1]) for part in parts if part for _ in range(int(part[2] or 1))]


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


def gathered(value: str | None) -> list[str | None]:
    """Return the texts of all processes, in their order. Works before a device is touched."""
    import torch.distributed as dist

    if not grouped():
        return [value]
    group: Any = dist.new_group(backend="gloo")
    values: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=group)
    dist.destroy_process_group(group)
    return values


def total(value: Tensor) -> Tensor:
    """Return the sum of the tensors of all processes, which is written into `value`."""
    import torch.distributed as dist

    if grouped():
        if dist.get_backend() == "nccl":
            value = value.cuda()
        dist.all_reduce(value)
    return value


def together(work: Callable[[], T]) -> T:
    """Return the result of `work`, which every process calls.

    Raises:
        AgreedError: on every process, if `work` raised an error on any that the user can fix.
    """
    result, failure = None, None
    try:
        result = work()
    except Exception as error:
        if not grouped() or (failure := one_line(error)) is None:
            raise
    for text in gathered(failure):
        if text is not None:
            raise AgreedError(text)
    return cast("T", result)


def from_first(work: Callable[[], T]) -> T:
    """Return on every process what `work` returns on the first, which alone calls it.

    Raises:
        AgreedError: on every process, if `work` raised an error that the user can fix.
    """
    import torch.distributed as dist

    found = [together(lambda: work() if is_first() else None)]
    if grouped():
        group: Any = dist.new_group(backend="gloo")
        dist.broadcast_object_list(found, src=0, group=group)
        dist.destroy_process_group(group)
    return cast("T", found[0])
