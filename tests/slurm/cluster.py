"""What the tests do with a cluster, and with the files of runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT, command, files_below

HERE = Path(__file__).parent


class Cluster:
    """Submits jobs from a folder, and looks at what became of them.

    Args:
        folder: where jobs run and write their logs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": f"{ROOT / 'src'}:{HERE}:{os.environ.get('PYTHONPATH', '')}",
            "OMP_NUM_THREADS": "1",
            "SLOW": str(folder / "slow"),
        }
        for script in ("train.py", "merge.py", "report.py", "pipeline.py"):
            (folder / script).symlink_to(ROOT / script)

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command of this machine to its end."""
        return subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300)

    def submit(self, script: str, *words: str, options: tuple[str, ...] = ()) -> str:
        """Submit a batch script, and return the number of the job."""
        name = f"job-{len(list(self.folder.glob('job-*.sh')))}.sh"
        (self.folder / name).write_text(script if script.startswith("#!") else f"#!/bin/bash\n{script}")
        done = self.run("sbatch", "--parsable", "--open-mode=append", f"--output={name}-%j.log", *options, name, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def log(self, job: str) -> str:
        """Return what the job has printed."""
        return "".join(path.read_text() for path in self.folder.glob(f"*-{job}.log"))

    def facts(self, job: str) -> dict[str, str]:
        """Return what SLURM knows of the job."""
        shown = self.run("scontrol", "show", "job", "-o", job).stdout
        return dict(re.findall(r"(\S+?)=(\S*)", shown))

    def ended(self, job: str) -> str:
        """Wait for the end of the job, and return its state."""
        over = ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")
        until(lambda: self.facts(job)["JobState"] in over, lambda: self.log(job))
        return self.facts(job)["JobState"]

    def started_again(self, job: str) -> None:
        """Wait until SLURM has put the job into the queue again, or started it already."""
        until(lambda: int(self.facts(job)["Restarts"]), lambda: self.log(job))


def until(condition: Callable[[], object], log: Callable[[], str] = str, seconds: float = 150) -> None:
    """Wait until the condition holds; it is too late when the whole test should be over."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            pytest.fail(f"waited in vain; the job said:\n{log()}")
        time.sleep(0.3)


def script(name: str) -> str:
    """Return a batch script of docs/clusters.md as it stands."""
    page = (ROOT / "docs/clusters.md").read_text()
    return re.search(rf"`{name}`.*?```bash\n(.*?)```", page, re.DOTALL)[1]


def trained(root: Path, *words: str) -> dict[str, bytes]:
    """Train in this process, which has imported everything, and return the bytes of all tensor files."""
    outcome = command("train.py", *words, f"root={root}")
    assert (outcome.code, outcome.err) == (0, "")  # no warning of an `srun` that is not used
    return tensors(root)


def tensors(root: Path) -> dict[str, bytes]:
    """Return the bytes of all tensor files below a folder."""
    return {
        str(path.relative_to(root)): path.read_bytes() for path in files_below(root) if path.suffix == ".safetensors"
    }
