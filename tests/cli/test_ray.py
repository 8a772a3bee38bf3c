"""cluster=ray: a sweep as tasks of Ray. Skipped where Ray is not installed; `make test-ray` runs it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import ROOT, command, config, noise

from mergestream.cli import on_ray
from mergestream.cli.listed import Parts
from mergestream.cli.on_ray import asked
from mergestream.compose.run import run_of
from mergestream.runtime import processes
from mergestream.runtime.errors import UserError

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed; pip install 'mergestream[ray]'")
WORDS = (*noise(), "epochs=1", "logger=none")
ON_RAY = ("cluster=ray", "cluster.cpus=1")


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *words],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    """Wait until the condition holds, for two minutes, and while the process runs."""
    end = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.1)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("task-*/*.safetensors"))}


@needs_ray
def test_a_sweep_ends_in_the_bytes_of_a_local_one_and_shows_all_errors(tmp_path):
    sweep = (*WORDS, "method=ewc", "method.strength=-1,1000", "seed=1,2")
    ray, here = (start(f"root={tmp_path / name}", *how, *sweep) for name, how in (("ray", ON_RAY), ("here", ())))
    (out, said), (_, expected) = ray.communicate(), here.communicate()
    assert ray.returncode == here.returncode == 1
    assert "4 jobs in 4 tasks of Ray" in out
    assert said.count("method.strength must be a number, at least 0; got method.strength=-1") == 2
    assert sorted(said.replace(f"{tmp_path}/ray", f"{tmp_path}/here").splitlines()) == sorted(expected.splitlines())
    assert contents(tmp_path / "ray") == contents(tmp_path / "here") != {}


@needs_ray
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_work_which_the_same_command_continues(tmp_path, number):
    words = (*ON_RAY, *WORDS, "epochs=20", "seed=1", "checkpoint.every_minutes=0")
    process = start(f"root={tmp_path / 'cut'}", *words)
    until(lambda: list((tmp_path / "cut").rglob("checkpoint.safetensors")), process)
    process.send_signal(number)
    _, err = process.communicate()
    assert process.returncode == 128 + number
    assert err == (
        f"stopped by {number.name}; 1 of 1 task of Ray saved something new. "
        "Type the same command again to continue from what is saved\n"
    )
    (log,) = (tmp_path / "cut").rglob("_sweeps/*/train/0.log")
    assert "stopped by SIGTERM at task" in log.read_text()
    for name in ("cut", "whole"):
        process = start(f"root={tmp_path / name}", *words)
        assert process.communicate()[1] == ""
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole") != {}


@needs_ray
def test_a_signal_before_anything_is_saved_says_so(tmp_path):
    process = start(f"root={tmp_path}", *ON_RAY, *WORDS, "seed=1")
    until(lambda: list(tmp_path.rglob("0.log.starts")), process)  # then the job imports what it needs, for seconds
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert "0 of 1 task of Ray saved something new" in err
    assert not list(tmp_path.rglob("checkpoint.safetensors"))


@needs_ray
@pytest.mark.parametrize("lost", ["worker", "command"])
def test_a_new_start_continues_what_was_killed(tmp_path, lost):
    """Ray starts the task of a killed worker again; a killed command is typed again."""
    words = (*ON_RAY, *WORDS, "epochs=20", "seed=1", "checkpoint.every_minutes=0")
    process = start(f"root={tmp_path / 'cut'}", *words)
    until(lambda: list((tmp_path / "cut").rglob("checkpoint.safetensors")), process)
    (held,) = (tmp_path / "cut").rglob(".lock-*")
    job = json.loads(held.read_text())["pid"]
    os.kill(int(Path(f"/proc/{job}/stat").read_text().split()[3]) if lost == "worker" else process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == (0 if lost == "worker" else -signal.SIGKILL)
    until(lambda: not Path(f"/proc/{job}").exists())
    for name in ("cut", "whole"):
        process = start(f"root={tmp_path / name}", *words)
        assert (process.communicate()[1], process.returncode) == ("", 0)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole") != {}


def test_a_task_has_the_cores_and_threads_that_ray_reserves(monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    for variable in (*on_ray.VISIBLE, "OMP_NUM_THREADS"):
        monkeypatch.delenv(variable, raising=False)
    for each, gpus, threads in ((1, 0.0, "8"), (4, 0.0, "1"), (1, 1.0, "8")):
        environment = on_ray._environment(on_ray.Asked(each, 8, gpus, None))
        assert (environment["OMP_NUM_THREADS"], environment[processes.CORES]) == (threads, "8")
        assert environment.get("CUDA_VISIBLE_DEVICES") == (None if gpus else "")
        assert "HYDRA_FULL_ERROR" not in environment
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert on_ray._environment(on_ray.Asked(4, 8, 0.0, None))["OMP_NUM_THREADS"] == "3"
    monkeypatch.setenv(processes.CORES, "1")
    assert processes.cores() == 1


@pytest.mark.parametrize(("gpus", "seen"), [(0.0, ""), (1.0, "3")])
def test_a_task_sees_the_gpus_that_ray_gives_it(gpus, seen, tmp_path, monkeypatch):
    """The command may have others, and Ray may leave those of the node to a task that asks for none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    environment = on_ray._environment(on_ray.Asked(1, 1, gpus, None))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    show = [sys.executable, "-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    assert on_ray._work(show, environment, str(tmp_path), str(tmp_path / "log")) == 0
    assert (tmp_path / "log").read_text() == f"{seen}\n"


class Nodes:
    """Two nodes of a cluster of Ray."""

    @staticmethod
    def nodes():
        return [
            {"Alive": True, "Resources": {"CPU": 32.0, "GPU": 4.0, "memory": 128.0 * 2**30}},
            {"Alive": True, "Resources": {"CPU": 64.0, "memory": 256.0 * 2**30}},
            {"Alive": False, "Resources": {"CPU": 256.0, "GPU": 8.0}},
        ]


DEFAULTS = {"gpus": "auto", "cpus": "auto", "memory": None, "jobs_per_node": "auto"}


@pytest.mark.parametrize(
    ("changed", "small", "expected"),
    [
        ({}, False, "8 CPUs and 1 GPU"),
        ({"gpus": 2, "memory": "64G"}, False, "16 CPUs and 2 GPUs, 64 GiB of memory"),
        ({"gpus": 0.25}, False, "2 CPUs and 0.25 GPUs"),
        ({"gpus": 0, "cpus": 48}, False, "48 CPUs and 0 GPUs"),
        ({}, True, "1 CPU and 0 GPUs"),
        ({"cpus": 4}, True, "4 CPUs and 0 GPUs"),
    ],
)
def test_what_a_task_asks_for(changed, small, expected):
    assert str(asked(Nodes, {**DEFAULTS, **changed}, small)) == expected


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"gpus": 5}, "cluster.gpus must be at most 4, which a node of Ray has; got cluster.gpus=5"),
        ({"gpus": 1.5}, "cluster.gpus must be 0, a share of one GPU, a whole number, or auto"),
        ({"cpus": 65}, "cluster.cpus must be at most 64"),
        ({"cpus": 0}, "cluster.cpus must be a whole number, 1 or more, or auto"),
        ({"memory": "257G"}, "cluster.memory must be at most 256G, which a node of Ray has; got cluster.memory=257G"),
        (
            {"gpus": 1, "cpus": 33},
            "one node of Ray must have all that a task asks for, and none has; got cluster.cpus=33, cluster.gpus=1",
        ),
        ({"memory": "200G"}, "and none has; got cluster.cpus=8, cluster.gpus=1, cluster.memory=200G"),
        ({"memory": "many"}, "cluster.memory must be a number with K, M, G or T"),
    ],
)
def test_what_no_node_has_is_refused(changed, message):
    with pytest.raises(UserError, match=message):
        asked(Nodes, {**DEFAULTS, **changed}, False)


def test_a_node_without_the_folder_and_one_that_was_lost(tmp_path):
    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        cause = FileNotFoundError("no such folder")

    def get(error):
        raise error

    ray = SimpleNamespace(get=get, exceptions=SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError))
    parts = Parts(tmp_path, [range(1)], [])
    assert on_ray._errors(ray, RayTaskError("ray::_work"), parts, 0) == [
        f"job 0: failed (no such folder); it wrote no {tmp_path}/0.log; root must be a folder that all nodes share"
    ]
    assert on_ray._errors(ray, RayError("a node died"), parts, 0) == [
        f"job 0: Ray lost it (a node died); it did not start; there is no {tmp_path}/0.log"
    ]


def test_without_ray(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    outcome = command("train.py", "-m", f"root={tmp_path}", "cluster=ray", "seed=1,2")
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert line.endswith("cluster=ray needs Ray, which is not installed. Type: pip install 'mergestream[ray]'")


@needs_ray
def test_an_address_without_a_cluster(tmp_path):
    process = start(f"root={tmp_path}", *ON_RAY, "cluster.address=127.0.0.1:1", "seed=1,2")
    _, err = process.communicate()
    assert process.returncode == 1
    assert "HOST:PORT or ray://HOST:PORT of a running cluster; got 127.0.0.1:1" in err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.safetensors"))


@needs_ray
def test_a_dry_run(tmp_path):
    process = start(f"root={tmp_path}", *ON_RAY, "cluster.dry_run=true", *WORDS, "seed=1,2")
    out, _ = process.communicate()
    assert process.returncode == 0
    assert out.count("to run, cost unknown") == 2
    assert "Each task of Ray runs 1 and asks for 1 CPU and 0 GPUs" in out
    assert not run_of(config("train", f"root={tmp_path}", *WORDS, "seed=1")).path.exists()
