"""Parts of a sweep for a cluster: files that list their jobs, the command that runs one, and the errors in its log."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ERROR = "error: "  # how a command begins a line that says what is wrong


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, such as ``1 job`` or ``2 jobs``."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


@dataclass(frozen=True)
class Parts:
    """A sweep in parts, each with some of its jobs. A part is the command of the sweep again, with its file.

    Signals, errors and exit codes are therefore those of any run.

    Args:
        folder: of the files and the logs.
        numbers: for each part, the numbers of its jobs.
        words: the command of every part but for its file.
    """

    folder: Path
    numbers: list[range]
    words: list[str]

    def log(self, part: int) -> Path:
        """Return the log of a part."""
        return self.folder / f"{part}.log"

    def command(self, part: int) -> list[str]:
        """Return the command of a part."""
        return [*self.words, f"hydra.sweeper.listed='{self.folder / str(part)}.json'"]

    def why(self, part: int, state: str) -> list[str]:
        """Return the errors in the log of a part, or its state and the log.

        Args:
            part: its number.
            state: how it ended; ``failed`` is that of a part that could not open its log, too.
        """
        log = self.log(part)
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        errors = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
        first, last = self.numbers[part].start, self.numbers[part][-1]
        name = f"job {first}" if first == last else f"jobs {first} to {last}"
        if log.is_file():
            where = f"its log is {log}"
        elif state.startswith("failed"):
            where = f"it wrote no {log}; root must be a folder that all nodes share"
        else:
            where = f"it did not start; there is no {log}"
        return list(dict.fromkeys(errors)) or [f"{name}: {state}; {where}"]


def divided(jobs: Sequence[Sequence[str]], each: int, common: Sequence[str], folder: Path) -> Parts:
    """Write the files of a sweep in parts.

    Args:
        jobs: the overrides of each job.
        each: jobs of a part, which run side by side.
        common: overrides of Hydra's own for all.
        folder: a new folder for the files.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True)
    numbers = [range(i, min(i + each, len(jobs))) for i in range(0, len(jobs), each)]
    for part, chunk in enumerate(numbers):
        listed = {"first": chunk.start, "jobs": [[*jobs[i]] for i in chunk]}
        (folder / f"{part}.json").write_text(json.dumps(listed, indent=1))
    words = [sys.executable, os.path.abspath(sys.argv[0]), "--multirun", *common, "cluster=local"]
    words += [f"cluster.jobs_per_node={each}", f"hydra.sweep.dir='{folder}'"]
    return Parts(folder, numbers, words)
