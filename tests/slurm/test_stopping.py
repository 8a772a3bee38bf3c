"""How jobs stop and go on. The docstring of each test is its row in docs/clusters.md."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess

import pytest
from helpers import ROOT, noise
from slurm.cluster import Cluster, script, tensors, trained, until

TRAIN = (*noise()[:-2], "tasks=2", "batch_size=16", "epochs=1", "method=seq", "checkpoint.every_minutes=0")
PLAIN, TRAIN = (*TRAIN, "logger=none"), (*TRAIN, "logger._target_=slow.logger", "allow_targets=[slow]")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The tensor files of one process, uninterrupted."""
    return trained(tmp_path_factory.mktemp("one"), *PLAIN)


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


def test_the_time_limit(cluster, one):
    """`train.sh` and `train_nodes.sh` as they stand, at the time limit | saved, requeued; the bytes of one start"""
    slow(cluster)
    cluster.environment["SLURM_KILL_BAD_EXIT"] = "1"  # as some clusters have it: srun ends all processes with the first
    single = cluster.submit(script("train.sh"), *TRAIN, "root=runs")
    nodes = cluster.submit(script("train_nodes.sh"), *TRAIN, "root=nodes")
    for job, root in ((single, "runs"), (nodes, "nodes")):
        in_training(cluster, job, root)
        cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")  # less than two minutes are left
    for job in (single, nodes):
        cluster.started_again(job)
        cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=60")
    fast(cluster)
    assert finished(cluster, single) == one
    again = finished(cluster, nodes, "nodes")
    for job in (single, nodes):
        log = cluster.log(job)
        assert f"SLURM has requeued job {job}" in log
        assert "stopped by SIGUSR1 at task 1 of 2, epoch 1, step" in log
    assert again == trained(cluster.folder / "two", *PLAIN, "devices=2")


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


def test_pre_emption(cluster, one):
    """`train.sh`, pre-empted by another job | saved, requeued; the bytes of one start"""
    slow(cluster)
    job = cluster.submit(script("train.sh"), *TRAIN, "root=runs", options=("--partition=low",))
    in_training(cluster, job)
    node = cluster.facts(job)["NodeList"]
    cluster.submit("sleep 3", options=("--partition=high", f"--nodelist={node}", "--exclusive"))
    cluster.started_again(job)
    fast(cluster)
    assert finished(cluster, job) == one


def test_pre_emption_is_no_time_out(cluster, one):
    """`cluster=slurm cluster.timeouts=0`, pre-empted; then its time is up | the bytes of one start; the job fails"""
    slow(cluster)
    words = ("cluster=slurm", "cluster.gpus=0", "cluster.partition=low", "cluster.timeouts=0", "cluster.wait=false")
    jobs = {}
    for root, minutes in (("runs", 60), ("limit", 4)):
        done = cluster.run("python", "train.py", "-m", *TRAIN, *words, f"cluster.minutes={minutes}", f"root={root}")
        jobs[root] = re.search(r"^submitted 1 jobs of train as (\d+); ", done.stdout, re.MULTILINE)[1] + "_0"
        in_training(cluster, jobs[root], root)
    node = cluster.facts(jobs["runs"])["NodeList"]
    cluster.submit("sleep 3", options=("--partition=high", f"--nodelist={node}", "--exclusive"))
    cluster.started_again(jobs["runs"])
    cluster.run("scancel", "--batch", "--signal=USR1", jobs["limit"])  # as SLURM does less than two minutes before
    assert cluster.ended(jobs["limit"]) == "FAILED"
    (log,) = cluster.folder.glob("limit/_sweeps/*/train/0.log")
    assert f"the time of job {jobs['limit']} was up 1 times, and cluster.timeouts=0 allows no more" in log.read_text()
    fast(cluster)
    assert finished(cluster, jobs["runs"]) == one


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
    cluster.started_again(job)
    fast(cluster)
    assert finished(cluster, job) == one
    assert cluster.facts(job)["NodeList"] != node
    assert f"on {node} since" in cluster.log(job)
    assert "an earlier start of this job" in cluster.log(job)


@pytest.fixture
def sweep(cluster):
    """(root, minutes, time-outs) → the job of a sweep that submitit has submitted. Its command waits for the job."""
    packages = ROOT / ".venv/slurm"
    if not packages.is_dir():
        pytest.skip("make test-slurm puts submitit there")
    cluster.environment["PYTHONPATH"] += f":{packages}"
    waiting = []

    def start(root: str, minutes: int, timeouts: int) -> str:
        options = {
            "timeout_min": minutes,
            "cpus_per_task": 1,
            "max_num_timeout": timeouts,
            "submitit_folder": f"{root}-%j",
        }
        words = [f"hydra.launcher.{key}={value}" for key, value in options.items()]
        words += ["hydra/launcher=submitit_slurm", f"hydra.sweep.dir={root}-sweep", f"root={root}"]
        command = ["python", "train.py", "-m", *TRAIN, *words]
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        waiting.append(subprocess.Popen(command, cwd=cluster.folder, env=cluster.environment, **pipes))
        until(lambda: list(cluster.folder.glob(f"{root}-[0-9]*/*_submitted.pkl")))
        return next(cluster.folder.glob(f"{root}-[0-9]*")).name.partition("-")[2]

    yield start
    for process in waiting:
        process.kill()
        process.wait()


def test_submitit(cluster, one, sweep):
    """`hydra/launcher=submitit_slurm`, when the time is up | saved, requeued; without time-outs left the job fails"""
    slow(cluster)
    goes_on, used_up = sweep("goes_on", 60, 1), sweep("used_up", 5, 0)
    for job, root in ((goes_on, "goes_on"), (used_up, "used_up")):
        in_training(cluster, job, root)
        cluster.run("scancel", "--signal=USR2", job)
    cluster.started_again(goes_on)
    fast(cluster)
    assert cluster.ended(used_up) == "FAILED"
    (log,) = cluster.folder.glob("used_up-*/*_log.err")
    assert log.read_text().startswith("stopped by SIGUSR2 at task 1 of 2, epoch 1, step")
    assert "\nerror: Job not requeued because: timed-out too many times.\n" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert finished(cluster, goes_on, "goes_on") == one
