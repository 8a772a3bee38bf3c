"""How jobs stop and go on. The docstring of each test is its row in docs/clusters.md."""

from __future__ import annotations

import json
import os
import signal

from slurm.cluster import script, trained, until
from slurm.runs import PLAIN, TRAIN, fast, finished, in_training, slow


def test_the_time_limit(cluster, one):
    """`train.sh` and `train_nodes.sh` as they stand, at the time limit | saved, requeued; the bytes of one start"""
    slow(cluster)
    cluster.environment["SLURM_KILL_BAD_EXIT"] = "1"  # as some clusters have it: srun ends all processes with the first
    single = cluster.submit(script("train.sh"), *TRAIN, "root=runs")
    nodes = cluster.submit(script("train_nodes.sh"), *TRAIN, "root=nodes")
    for job, root in ((single, "runs"), (nodes, "nodes")):
        in_training(cluster, job, root)
    stopping = [single, nodes]
    for job in stopping:
        cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")  # less than two minutes are left

    def started_again() -> bool:
        for job in [job for job in stopping if int(cluster.facts(job)["Restarts"])]:
            cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")  # before the next signal
            stopping.remove(job)
        return not stopping

    until(started_again, lambda: cluster.log(single) + cluster.log(nodes))
    fast(cluster)
    assert finished(cluster, single) == one
    assert finished(cluster, nodes, "nodes") == trained(cluster.folder / "two", *PLAIN, "devices=2")
    for job in (single, nodes):
        log = cluster.log(job)
        assert f"SLURM has requeued job {job}" in log
        assert "stopped by SIGUSR1 at task 1 of 2, epoch 1, step" in log


def test_no_progress(cluster):
    """a job that saves nothing between two starts | it says so and fails, instead of being requeued for ever"""
    job = cluster.submit('exec python -c "import slow; slow.never_ready()" "$@"', *TRAIN)
    for start in (0, 1):
        until(lambda: cluster.log(job).count("getting ready") > start, lambda: cluster.log(job))  # noqa: B023
        cluster.run("scancel", "--batch", "--signal=USR1", job)
        if not start:
            cluster.started_again(job)
    assert cluster.ended(job) == "FAILED"
    last = cluster.log(job).splitlines()[-1]
    assert last.startswith(f"error: nothing new was saved since SLURM started job {job} again, so it is not requeued")
    assert "Traceback" not in cluster.log(job)


def test_a_lost_node(cluster, one):
    """a job whose process was killed starts again on another node | it waits for the lock; the bytes of one start"""
    slow(cluster)
    job = cluster.submit(script("train.sh"), *TRAIN, "root=runs")
    in_training(cluster, job)
    (lock,) = cluster.folder.glob("runs/**/.lock-*")
    os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
    node = cluster.facts(job)["NodeList"]
    assert cluster.ended(job) == "FAILED"
    cluster.run("scontrol", "requeuehold", job)
    cluster.run("scontrol", "update", f"JobId={job}", f"ExcNodeList={node}")
    cluster.run("scontrol", "release", job)

    def waits() -> bool:
        os.utime(lock)  # for the other node, its holder is alive
        return f"on {node} since" in cluster.log(job)

    until(waits, lambda: cluster.log(job))
    assert "an earlier start of this job" in cluster.log(job)
    os.utime(lock, (0, 0))  # now it counts as dead
    fast(cluster)
    assert finished(cluster, job) == one
    assert cluster.facts(job)["NodeList"] != node


def test_a_handler_of_its_own(cluster, one):
    """a job whose own handler of USR2 requeues it, as submitit's | saved first, then requeued; if not, the job fails"""
    slow(cluster)
    jobs = {
        root: cluster.submit(
            f'exec python -c "import slow; slow.like_submitit({allowed})" "$@"', *TRAIN, f"root={root}"
        )
        for root, allowed in (("goes_on", 1), ("used_up", 0))
    }
    for root, job in jobs.items():
        in_training(cluster, job, root)
        cluster.run("scancel", "--batch", "--signal=USR2", job)
    cluster.started_again(jobs["goes_on"])
    fast(cluster)
    assert cluster.ended(jobs["used_up"]) == "FAILED"
    log = cluster.log(jobs["used_up"])
    assert log.startswith("stopped by SIGUSR2 at task 1 of 2, epoch 1, step")
    assert "\nerror: Job not requeued because: timed-out too many times.\n" in log
    assert "Traceback" not in log
    assert finished(cluster, jobs["goes_on"], "goes_on") == one
