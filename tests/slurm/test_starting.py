"""How processes are started. The docstring of each test is its row in docs/clusters.md."""

from __future__ import annotations

import re

import pytest
from helpers import ROOT, noise
from slurm.cluster import Cluster, tensors, trained

TRAIN = ("python", "train.py", *noise()[:-2], "tasks=2", "batch_size=16", "epochs=1", "logger=none", "method=seq")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return Cluster(tmp_path_factory.mktemp("starting"))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The tensor files of ``devices=2`` without a cluster."""
    return trained(tmp_path_factory.mktemp("two"), *TRAIN[2:], "devices=2")


def line(*words: str) -> str:
    return " ".join((*TRAIN, *words))


def test_without_srun(here, two):
    """a batch script with `--ntasks-per-node=2` and `python train.py devices=2` | the bytes of `devices=2` elsewhere"""
    job = here.submit(line("root=batch", "devices=2"), options=("--ntasks-per-node=2",))
    assert here.ended(job) == "COMPLETED", here.log(job)
    assert tensors(here.folder / "batch") == two
    assert "Warning" not in here.log(job)


def test_two_steps_at_once(here, two):
    """`srun -n 2 python train.py` and `srun -n 2 -N 2 …` at once, steps of one job | twice the bytes of `devices=2`"""
    steps = (
        f"srun --exact -n 2 {nodes} {line(f'root={root}')} &" for root, nodes in (("one", "-N 1"), ("both", "-N 2"))
    )
    job = here.submit("\n".join((*steps, "wait")), options=("-n4", "-N2"))
    assert here.ended(job) == "COMPLETED", here.log(job)
    assert tensors(here.folder / "one") == tensors(here.folder / "both") == two, here.log(job)


def test_a_shell_in_between(here, two):
    """`srun -n 2` and a shell that starts `python train.py devices=2` | the bytes of `devices=2`"""
    done = here.run("srun", "-n", "2", "bash", "-c", line("root=shell", "devices=2"))
    assert done.returncode == 0, done.stderr
    assert tensors(here.folder / "shell") == two


def test_four_on_two_nodes(here):
    """`srun -n 4 -N 2 python train.py` | the bytes of `torchrun --nproc-per-node=4`"""
    for root, launcher in (
        ("four", ("srun", "-n", "4", "-N", "2", "python")),
        ("torchrun", ("torchrun", "--nproc-per-node=4")),
    ):
        done = here.run(*launcher, *TRAIN[1:], f"root={root}")
        assert done.returncode == 0, done.stderr
    assert tensors(here.folder / "four") == tensors(here.folder / "torchrun") != {}


def test_one_gpu_for_each(here):
    """`srun -n 2 --gpus-per-task=1` | each process takes the one GPU that it sees"""
    found = here.run("srun", "-n", "2", "--gpus-per-task=1", "python", str(ROOT / "tests/slurm/gpu.py")).stdout
    assert sorted(found.splitlines()) == ["0 of 2: GPU 0, cuda:0", "1 of 2: GPU 1, cuda:0"]


def errors(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if not line.startswith("srun: ")]


def test_devices_that_srun_has_not_started(here):
    """`srun -n 2 python train.py devices=3` | one line: which number `srun` started"""
    done = here.run("srun", "-n", "2", *TRAIN, "root=three", "devices=3")
    (said,) = errors(done.stderr)
    assert said.startswith("error: devices must be the number of processes that srun started, 2 (2 on this node)")
    assert done.returncode == 1


def test_a_root_that_is_not_shared(here):
    """`srun -n 2 -N 2 python train.py` with a `root` of each node's own | one line: the path and the nodes"""
    done = here.run("srun", "-n", "2", "-N", "2", *TRAIN, "root=/node-local/runs")
    (said,) = errors(done.stderr)
    assert said.startswith("error: root must be a folder that all nodes share; what n1 wrote to /node-local/runs does")
    assert "appear on n2" in said
    assert done.returncode == 1


def test_inside_an_allocation(here):
    """`salloc`, and tests of side-by-side jobs, several processes and signals in it | pass, as they do outside"""
    files = ("training/test_run.py", "training/test_faults.py", "runtime/test_side_by_side.py", "cli/test_sweeps.py")
    chosen = "two_processes_equal_one and seq or error_in_a_process or side_by_side and bytes or asked_to_start_the_job"
    words = ("python", "-m", "pytest", "-p", "no:cacheprovider", *(str(ROOT / "tests" / file) for file in files))
    inside = ("bash", "-c", 'echo "job $SLURM_JOB_ID, $SLURM_NTASKS_PER_NODE tasks"; exec "$@"', "-")
    done = here.run("salloc", "--ntasks-per-node=2", *inside, *words, "-k", f"{chosen} or test_side_by_side")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^job \d+, 2 tasks$", done.stdout, re.MULTILINE)
    assert "8 passed" in done.stdout
