"""Sweeps as arrays of jobs. The docstring of each test is its row in docs/clusters.md."""

from __future__ import annotations

import re

from helpers import ROOT, command, noise
from slurm.cluster import tensors, until

from mergestream.cli import slurm

TRAIN = (*noise()[:-2], "batch_size=16", "epochs=1", "logger=none")
SMALL = ("cluster=slurm", "cluster.gpus=0", "cluster.minutes=10")


def state(cluster, job):
    """The states of an array that SLURM's accounting has."""
    shown = cluster.run("sacct", "--noheader", "--allocations", "--format=State", f"--jobs={job}").stdout
    return sorted(shown.split())


def test_a_failed_job(cluster):
    """`cluster=slurm`, one job of which has a wrong value | its line here and in its log; FAILED; others finish"""
    done = cluster.run("python", "train.py", "-m", *TRAIN, *SMALL, "method=zeroshot", "tasks=2,0,1", "root=runs")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: job 1 (")
    assert line.endswith("tasks must be a whole number, 1 or more; got tasks=0")
    (log,) = cluster.folder.glob("runs/_sweeps/*/train/1.log")
    assert line in log.read_text().splitlines()
    assert "Traceback" not in log.read_text()
    job = re.search(r"^submitted 3 jobs of train as (\d+); ", done.stdout, re.MULTILINE)[1]
    until(lambda: state(cluster, job) == ["COMPLETED", "COMPLETED", "FAILED"])
    assert len(list(cluster.folder.glob("runs/folder/*/tiny/zeroshot/*/metrics.json"))) == 2


def test_stages(cluster):
    """`pipeline.py … cluster=slurm`, two jobs side by side | all stages succeed; the bytes of jobs in turn"""
    words = [*TRAIN, "tasks=2", "method=seq,ind", "strategy=magmax,average"]
    done = cluster.run("python", "pipeline.py", *words, *SMALL, "cluster.cpus=2", "root=runs")
    assert (done.returncode, done.stderr) == (0, "")
    report = re.search(r"^submitted report as (\d+); ", done.stdout, re.MULTILINE)[1]
    assert cluster.ended(report) == "COMPLETED"
    assert (cluster.folder / "runs/_report/report.md").is_file()
    turn = cluster.folder / "turn"
    assert command("train.py", "-m", *words[:-1], f"root={turn}").code == 0
    merged = [word for word in words if word != "logger=none"]
    assert command("merge.py", "-m", *merged, f"root={turn}").code == 0
    assert tensors(cluster.folder / "runs") == tensors(turn)


def test_a_failed_stage(cluster):
    """`pipeline.py … cluster=slurm` whose training fails | the merges and the report are cancelled"""
    done = cluster.run("python", "pipeline.py", *TRAIN, *SMALL, "tasks=0", "root=runs")
    assert done.returncode == 0
    merge, report = (
        re.search(rf"^submitted .*{stage} as (\d+); ", done.stdout, re.MULTILINE)[1] for stage in ("merge", "report")
    )
    until(lambda: state(cluster, merge) == state(cluster, report) == ["CANCELLED"])
    assert not list(cluster.folder.rglob("metrics.json"))


def test_what_is_not_there(cluster):
    """`cluster=slurm` with a partition that does not exist; too many GPUs or minutes | one line: what there is"""
    words = ("python", "train.py", "-m", *TRAIN, "cluster=slurm")
    missing = cluster.run(*words, "cluster.partition=nope")
    partitions = (
        "error: cluster.partition must be a partition of SLURM, one of high, low, work; got cluster.partition=nope\n"
    )
    assert (missing.returncode, missing.stderr) == (1, partitions)
    many = cluster.run(*words, "cluster.gpus=3")
    gpus = "error: cluster.gpus must be at most 2, which a node of partition work has; got cluster.gpus=3\n"
    assert (many.returncode, many.stderr) == (1, gpus)
    long = cluster.run(*words, "cluster.partition=low", "cluster.minutes=1441")
    minutes = "error: cluster.minutes must be at most 1440, the time limit of partition low; got cluster.minutes=1441\n"
    assert (long.returncode, long.stderr) == (1, minutes)


def test_jobs_that_slurm_has_forgotten(cluster):
    """`squeue` with a job that SLURM has forgotten | the error that a waiting command expects"""
    assert slurm.FORGETFUL in cluster.run("squeue", "--jobs=99999999").stderr


def test_a_root_that_is_not_shared(cluster):
    """`cluster=slurm` with a `root` that nodes do not see | one line: which file is not there"""
    done = cluster.run(
        "python", "train.py", "-m", *TRAIN, *SMALL, "method=zeroshot", "tasks=2", "root=/node-local/runs"
    )
    assert done.returncode == 1
    assert re.fullmatch(
        r"error: job 0: failed; it wrote no /node-local/runs/_sweeps/\S+/train/0.log; root must be a folder that all "
        r"nodes share\n",
        done.stderr,
    )


def test_without_accounting(cluster):
    """`cluster=slurm` while SLURM's accounting is down | all jobs finish; the exit code is 0"""
    script = str(ROOT / "scripts/slurm/cluster.sh")
    assert cluster.run(script, "stop_accounting").returncode == 0
    try:
        assert cluster.run("sacct").returncode != 0
        words = ("method=zeroshot", "tasks=2", "seed=1,2", "root=runs")
        done = cluster.run("python", "train.py", "-m", *TRAIN, *SMALL, *words)
    finally:
        assert cluster.run(script, "start").returncode == 0
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(cluster.folder.glob("runs/folder/*/tiny/zeroshot/*/metrics.json"))) == 2
