"""Runs that tests stop in the middle and let go on."""

from __future__ import annotations

from helpers import noise
from slurm.cluster import Cluster, tensors, until

TRAIN = (*noise()[:-2], "tasks=2", "batch_size=16", "epochs=1", "method=seq", "checkpoint.every_minutes=0")
PLAIN, TRAIN = (*TRAIN, "logger=none"), (*TRAIN, "logger._target_=slow.logger", "allow_targets=[slow]")


def in_training(cluster: Cluster, job: str, root: str = "runs") -> None:
    """Wait until the job has saved something of its first task."""
    until(lambda: list((cluster.folder / root).rglob("checkpoint.safetensors")), lambda: cluster.log(job))


def slow(cluster: Cluster) -> None:
    (cluster.folder / "slow").touch()


def fast(cluster: Cluster) -> None:
    (cluster.folder / "slow").unlink()


def finished(cluster: Cluster, job: str, root: str = "runs") -> dict[str, bytes]:
    """Wait for the end of the job, and return the tensor files of its run."""
    assert cluster.ended(job) == "COMPLETED", cluster.log(job)
    assert "Traceback" not in cluster.log(job)
    return tensors(cluster.folder / root)
