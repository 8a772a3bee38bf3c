"""What `scripts/slurm/cluster.sh stop` ends. It needs no SLURM: the daemons are programs under their names."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="SLURM runs on Linux")
@pytest.mark.parametrize(
    ("name", "command", "expected"),
    [
        ("munged", "exec -a /usr/sbin/munged sleep 60", "ended"),
        ("slurmdbd", "exec -a slurmdbd sleep 60", "ended"),
        ("slurmdbd", "exec -a other sleep 60", "left"),
        ("slurmdbd", "exec -a not-slurmdbd sleep 60", "left"),
        ("n1", "exec -a slurmd bash -c 'read line' -f x -N n1", "ended"),
        ("n1", "exec -a slurmd bash -c 'read line' -f x -N n2", "left"),
    ],
)
def test_only_its_own_daemons_are_ended(name, command, expected, tmp_path):
    """The id in a file may belong to another process by now."""
    process = subprocess.Popen(["bash", "-c", command], stdin=subprocess.PIPE)
    while b"exec" in Path(f"/proc/{process.pid}/cmdline").read_bytes():
        time.sleep(0.01)
    file = tmp_path / f"{name}.pid"
    file.write_text(f"{process.pid}\n")
    try:
        environment = {**os.environ, "MERGESTREAM_SLURM_DIR": str(tmp_path)}
        # The process is a zombie until it is waited for, which counts as ended.
        subprocess.run(["bash", ROOT / "scripts/slurm/cluster.sh", "stop"], env=environment, check=True)
        assert (process.poll() is None) == (expected == "left")
        assert not file.exists()
    finally:
        process.kill()
        process.communicate()
