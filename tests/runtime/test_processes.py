"""Which process this is: what the variables of torchrun, of srun's steps and of batch scripts say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mergestream.compose.build import device_of
from mergestream.runtime import processes, shared
from mergestream.runtime.errors import AgreedError, UserError
from mergestream.runtime.processes import Placement, placement
from mergestream.training.environment import OneDeviceEach, meeting_point
from mergestream.training.launcher import device_count

# As SLURM 22.05 sets them, of `sbatch --ntasks-per-node=2 -N 2`: in the script, and in the fourth process of its step.
BATCH = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NAME": "train",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NNODES": "2",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
    "SLURM_TASKS_PER_NODE": "2(x2)",
}
STEP = BATCH | {
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
UNEVEN = {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"}


@pytest.fixture
def variables(monkeypatch):
    """Sets the variables of a launcher instead of those that the tests run with."""

    def put(values: dict[str, str]) -> None:
        for name in list(os.environ):
            if name.startswith(("SLURM_", "MASTER_")):
                monkeypatch.delenv(name)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, Placement()),
        (BATCH, Placement()),
        (BATCH | {"SLURM_JOB_NAME": "interactive"}, Placement()),
        (STEP | {"SLURM_STEP_NUM_TASKS": "1"}, Placement()),
        (STEP, Placement("srun", 3, 4, 1, 2)),
        (STEP | {"SLURM_JOB_NAME": "bash"}, Placement("srun", 3, 4, 1, 2)),
        (STEP | UNEVEN, Placement("srun", 2, 3, 0, 1)),
        (STEP | TORCHRUN, Placement("torchrun", 1, 2, 1, 2)),  # started by a process of a step
    ],
)
def test_placement(variables, values, expected):
    variables(values)
    assert placement() == expected
    lightning = OneDeviceEach()
    assert (lightning.global_rank(), lightning.world_size()) == (expected.rank, expected.size)


def test_steps_meet_at_ports_of_their_own(variables):
    variables(STEP)
    first = meeting_point()
    assert first["MASTER_ADDR"] == "n1"
    for other in ({"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "13"}):
        variables(STEP | other)
        assert meeting_point()["MASTER_PORT"] != first["MASTER_PORT"]
    variables(STEP | {"SLURM_STEP_TASKS_PER_NODE": "4"} | {"SLURM_NODEID": "0", "MASTER_PORT": "555"})
    assert meeting_point() == {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "555"}


def test_devices_agree_with_the_launcher(variables):
    variables(STEP)
    assert [device_count(devices, "cpu") for devices in ("auto", 4, 2)] == [2, 2, 2]
    for devices in (3, 1, True):
        with pytest.raises(UserError, match=rf"that srun started, 4 \(2 on this node\); got devices={devices}"):
            device_count(devices, "cpu")


def test_cores_are_shared_unless_each_process_has_its_own(variables, monkeypatch):
    monkeypatch.setattr(processes, "_affinity", lambda: 8)
    variables(BATCH | {"SLURM_CPUS_ON_NODE": "4"})
    assert (processes.cores(), processes.share()) == (4, 4)
    with pytest.raises(UserError, match="number of CPU cores here, 4; got devices=5"):
        device_count(5, "cpu")
    variables(STEP | {"SLURM_CPUS_ON_NODE": "8"})
    assert processes.share() == 4
    variables(STEP | {"SLURM_CPUS_ON_NODE": "16"})  # bound to half of them
    assert processes.share() == 8


def test_each_process_takes_its_own_gpu(variables, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    variables(STEP)
    for visible, expected in ((1, 0), (2, 1), (4, 1)):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=visible: count)
        assert device_of("auto") == torch.device("cuda", expected)
    variables(STEP | {"SLURM_LOCALID": "2", "SLURM_STEP_TASKS_PER_NODE": "1,3"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="srun started 3 on this node, which see 2. Start 2 on each node"):
        device_of("auto")


def test_a_root_that_a_node_does_not_see(tmp_path, monkeypatch):
    root = tmp_path / "a" / "runs"
    shared.require_shared(root)  # alone
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(shared, "PATIENCE", 0)
    answers = iter((["n1 123", "n2 456"], [None, None], [None, "n2"]))
    monkeypatch.setattr(processes, "gathered", lambda value: next(answers))
    with pytest.raises(AgreedError, match="what n1 wrote to .* does not appear on n2. Write root=PATH") as error:
        shared.require_shared(root)
    assert str(root) in str(error.value)
    assert not list(tmp_path.iterdir())


def test_an_error_of_one_is_an_error_of_all(monkeypatch):
    def fails() -> None:
        raise UserError("a line")

    with pytest.raises(UserError, match="a line"):
        processes.together(fails)
    monkeypatch.setattr(processes, "gathered", lambda value: [value, None, "of the third"])
    with pytest.raises(AgreedError, match="of the third"):
        processes.together(lambda: Path())
