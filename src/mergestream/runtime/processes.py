"""What this process may use of the machine."""

from __future__ import annotations

import os


def cores() -> int:
    """CPU cores that this process may run on, which a cluster's share of a node can make fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def rank() -> int:
    """Number of this process among all of a launcher's; 0 without one."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0)))
