"""Sweeps: what is the same wherever their jobs run."""

from __future__ import annotations

import signal
import sys

import pytest
from helpers import ARE_SMALL, command, files_below, noise
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from omegaconf import OmegaConf, open_dict

from hydra_plugins import mergestream_grids
from hydra_plugins.mergestream_grids import GRIDS
from hydra_plugins.mergestream_jobs import Jobs, jobs_at_once
from mergestream.runtime import processes, side_by_side
from mergestream.runtime.interrupt import Stopped

TRAIN = [word for word in noise() if not word.startswith("tasks=")]


def test_jobs_side_by_side_have_the_bytes_and_the_errors_of_jobs_in_turn(tmp_path):
    words = ["train.py", "-m", *TRAIN, "logger=none", "epochs=1", "method=seq", "tasks=1,2,0"]
    serial = command(*words, f"root={tmp_path}/serial")
    beside = command(*words, f"root={tmp_path}/beside", "cluster.jobs_per_node=2")
    assert serial.code == beside.code == 1
    assert beside.err.replace("beside", "serial").replace("cluster.jobs_per_node=2,", "") == serial.err
    assert beside.err.count("\n") == 1
    assert "tasks" in beside.err
    found = [
        {path.relative_to(root): path.read_bytes() for path in files_below(root) if path.suffix == ".safetensors"}
        for root in (tmp_path / "serial", tmp_path / "beside")
    ]
    assert len(found[0]) == 4  # θ₀, and the encoders of 1 + 2 tasks
    assert found[0] == found[1]
    again = command(*words, f"root={tmp_path}/beside")
    assert again.out.count("already finished, nothing to do") == 2


@pytest.mark.parametrize(
    ("wanted", "words", "expected"),
    [
        ("auto", "seed=1 seed=2 seed=3 seed=4 seed=5", 4),
        ("auto", "seed=1 seed=2", 2),
        ("auto", "model=tiny model=vit_b_16", 1),
        ("auto", "accelerator=gpu accelerator=cpu", 1),
        ("auto", "devices=2 devices=1", 1),
        (3, "devices=2 devices=1 model=vit_b_16 seed=2", 3),
    ],
)
def test_how_many_jobs_run_side_by_side(wanted, words, expected, monkeypatch):
    monkeypatch.setattr("hydra_plugins.mergestream_jobs.are_small", ARE_SMALL)
    monkeypatch.setattr("hydra_plugins.mergestream_jobs.GPUS", ["/dev/null"])
    monkeypatch.setattr(processes, "cores", lambda: 4)
    config = {"cluster": {"jobs_per_node": wanted}, "accelerator": "auto", "devices": "auto", "model": {"name": "tiny"}}
    jobs = [[word] if "accelerator" in word else [word, "accelerator=cpu"] for word in words.split()]
    assert jobs_at_once(OmegaConf.create(config), jobs) == expected


def test_what_submitit_does_at_a_signal_follows_jobs_side_by_side(tmp_path, monkeypatch):
    def run(pool, jobs):
        raise Stopped(signal.SIGUSR2, "all saved", True)

    monkeypatch.setattr(side_by_side.SideBySide, "run", run)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    before = signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(3))
    try:
        outcome = command("train.py", "-m", "seed=1,2", f"root={tmp_path}", "cluster.jobs_per_node=2")
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (outcome.code, outcome.err) == (3, "all saved\n")


@pytest.mark.parametrize("value", ["0", "many", "1.5", "null"])
def test_a_wrong_number_of_jobs_is_one_line(value, tmp_path):
    outcome = command("train.py", "-m", "seed=1,2", f"root={tmp_path}", f"cluster.jobs_per_node={value}")
    assert outcome.code == 1
    assert outcome.err.startswith("error: cluster.jobs_per_node must be a whole number, 1 or more, or auto; got ")


GRID = ("+experiment=smoke", "dataset=digits", "hydra.sweeper.merge.ind.tasks=5", "+hydra.sweeper.params.epochs=7")


@pytest.mark.parametrize("kept", [mergestream_grids.KEPT, 1])
def test_each_job_gets_the_config_that_hydra_composes_but_for_the_grids(kept, tmp_path, monkeypatch):
    """Each file is read once for the sweep and once for all jobs. A job that is not kept is composed again."""
    monkeypatch.setattr(mergestream_grids, "KEPT", kept)
    plain, read, seen = ConfigLoaderImpl.load_sweep_config, [], []

    def load(source, config_path):
        read.append((source.path, config_path))
        return read_file(source, config_path)

    def launch(self, job_overrides, initial_job_idx):
        assert len(job_overrides) == 13
        assert max(read.count(path) for path in set(read)) <= 3  # once to find out that this is a sweep
        loader = self.hydra_context.config_loader
        for job in job_overrides[::6]:
            mine = loader.load_sweep_config(self.config, job)
            with monkeypatch.context() as patch:
                patch.setattr(loader, "repository", ConfigRepository(loader.config_search_path))
                theirs = plain(loader, self.config, job)
            assert [*theirs.hydra.sweeper.merge] == ["seq", "ind"]
            with open_dict(theirs):
                theirs.hydra.overrides.hydra = [w for w in theirs.hydra.overrides.hydra if ".sweeper." not in w]
                theirs.hydra.sweeper.update({name: {} for name in GRIDS})
            assert OmegaConf.to_container(mine) == OmegaConf.to_container(theirs)
            assert mine.hydra.sweep.dir == self.config.hydra.sweep.dir  # holds the time
            seen.append(mine.epochs)
        return []

    read_file = FileConfigSource.load_config
    monkeypatch.setattr(FileConfigSource, "load_config", load)
    monkeypatch.setattr(Jobs, "launch", launch)
    outcome = command("merge.py", *GRID, f"root={tmp_path}")
    assert (outcome.code, outcome.err) == (0, "")
    assert seen == [3] * 3
