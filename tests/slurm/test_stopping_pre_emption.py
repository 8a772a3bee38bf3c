"""How jobs that are pre-empted go on. The docstring of each test is its row in docs/clusters.md."""

from __future__ import annotations

import re

from slurm.cluster import script, until
from slurm.runs import TRAIN, fast, finished, in_training, slow


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


def test_pre_emption_with_sigterm(cluster, one):
    """`train.sh` without `--signal`, pre-empted by another job | SIGTERM: saved, requeued; the bytes of one start"""
    slow(cluster)
    lines = "".join(line for line in script("train.sh").splitlines(keepends=True) if "--signal" not in line)
    job = cluster.submit(lines, *TRAIN, "root=runs", options=("--partition=low",))
    in_training(cluster, job)
    node = cluster.facts(job)["NodeList"]
    cluster.submit("sleep 3", options=("--partition=high", f"--nodelist={node}", "--exclusive"))
    cluster.started_again(job)
    until(lambda: "stopped by SIGTERM" in cluster.log(job), lambda: cluster.log(job))  # in the grace time
    fast(cluster)
    assert finished(cluster, job) == one


def test_pre_emption_is_no_time_out(cluster, one):
    """`cluster=slurm cluster.timeouts=0`, pre-empted; then its time is up | the bytes of one start; the job fails"""
    slow(cluster)
    words = ("cluster=slurm", "cluster.gpus=0", "cluster.partition=low", "cluster.timeouts=0", "cluster.wait=false")
    jobs = {}
    ends = "cluster.setup=['SECONDS=3400']"  # as if the lines before the command had taken most of its time
    for root, more in (("runs", ()), ("limit", (ends,))):
        done = cluster.run("python", "train.py", "-m", *TRAIN, *words, *more, "cluster.minutes=60", f"root={root}")
        jobs[root] = re.search(r"^submitted 1 job of train as (\d+); ", done.stdout, re.MULTILINE)[1] + "_0"
        in_training(cluster, jobs[root], root)
    node = cluster.facts(jobs["runs"])["NodeList"]
    cluster.submit("sleep 3", options=("--partition=high", f"--nodelist={node}", "--exclusive"))
    cluster.started_again(jobs["runs"])
    cluster.run("scancel", "--batch", "--signal=USR1", jobs["limit"])  # as SLURM does less than two minutes before
    assert cluster.ended(jobs["limit"]) == "FAILED"
    (log,) = cluster.folder.glob("limit/_sweeps/*/train/0.log")
    assert f"the time of job {jobs['limit']} was up once, and cluster.timeouts=0 allows no more" in log.read_text()
    fast(cluster)
    assert finished(cluster, jobs["runs"]) == one
