"""Jobs of SLURM: one array for the jobs of a sweep, with sbatch and squeue alone, so that no accounting is needed.

Each job of the array runs a part of the sweep; see `Parts`.
"""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mergestream.cli.listed import Parts, divided
from mergestream.runtime import interrupt
from mergestream.runtime.errors import UserError
from mergestream.runtime.interrupt import Stopped
from mergestream.runtime.rules import is_whole, require_bool, require_whole

AUTO = "auto"
LARGEST = 1000  # jobs of an array, one less than SLURM allows unless told otherwise
SHORTEST = interrupt.EARLY // 60 + 1  # minutes of a job; in less, each signal would look like one near its end
PATIENCE = 600.0  # seconds without an answer of SLURM
FORGETFUL = "Invalid job id"  # SLURM's word for jobs that ended minutes ago
UNREACHABLE = re.compile(r"Unable to contact slurm controller|Connection refused|Socket timed out", re.IGNORECASE)
OWN = {  # options of sbatch that have a key, or that jobs cannot do without
    "partition": "the key cluster.partition",
    "account": "the key cluster.account",
    "time": "the key cluster.minutes",
    "cpus-per-task": "the key cluster.cpus",
    "mem": "the key cluster.memory",
    "dependency": "the key cluster.after",
    "kill-on-invalid-dep": "set with the key cluster.after",
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node"), "1 for all jobs; cluster.gpus sets their GPUs"),
    **dict.fromkeys(("array", "job-name", "open-mode", "output", "requeue", "signal"), "set for all jobs"),
}
# Why jobs wait in the normal course of things.
USUAL = {"None", "Priority", "Resources", "Dependency", "BeginTime", "JobArrayTaskLimit", "Cleaning"}
OVER = (
    "COMPLETED",
    "FAILED",
    "TIMEOUT",
    "CANCELLED",
    "OUT_OF_MEMORY",
    "NODE_FAIL",
    "DEADLINE",
    "BOOT_FAIL",
    "PREEMPTED",
)


@dataclass(frozen=True)
class Asked:
    """What each job asks for.

    Args:
        options: of sbatch.
        each: jobs of the sweep in a job of SLURM.
        setup: lines of the script before the command.
        timeouts: how often it is started again.
    """

    options: dict[str, str]
    each: int
    setup: list[str]
    timeouts: int


def asked(cluster: Mapping[str, Any], small: bool) -> Asked:
    """Check the config group and the partition, and return what each job asks for.

    Args:
        cluster: the config group.
        small: whether the jobs are those of small models, which share a job of SLURM unless they have a GPU.

    Raises:
        UserError: if there is no SLURM here, or the partition is missing or has less.
    """
    for program in ("sbatch", "squeue", "sinfo"):
        if shutil.which(program) is None:
            raise UserError(
                f"cluster=slurm needs {program} on the PATH, and there is none. Log in where jobs are submitted."
            )
    _check(cluster)
    each = cluster["jobs_per_node"]
    if each == AUTO:
        each = cluster["cpus"] if small and not cluster["gpus"] and cluster["cpus"] != AUTO else 1
    partitions = _partitions(cluster["partition"])
    if "qos" not in cluster["options"]:  # which may allow more than the partition
        _require_minutes(cluster["minutes"], partitions)
    cores, megabytes = _share(cluster["gpus"], partitions)
    cpus = cluster["cpus"] if cluster["cpus"] != AUTO else max(each, cores, 1)
    memory = cluster["memory"] if cluster["memory"] != AUTO else f"{megabytes}M" if megabytes else None
    options = {"partition": cluster["partition"], "account": cluster["account"], "mem": memory}
    options |= {"gres": f"gpu:{cluster['gpus']}" if cluster["gpus"] else None, "cpus-per-task": cpus}
    options |= {"time": cluster["minutes"], "dependency": f"afterok:{cluster['after']}" if cluster["after"] else None}
    options |= {"kill-on-invalid-dep": "yes" if cluster["after"] else None, **cluster["options"]}
    named = {key: str(value) for key, value in options.items() if value is not None}
    return Asked(named, each, [str(line) for line in cluster["setup"]], cluster["timeouts"])


def _check(cluster: Mapping[str, Any]) -> None:
    """Check the values of the config group.

    Raises:
        UserError: if one breaks its rule.
    """
    for key, least in {"gpus": 0, "minutes": SHORTEST, "timeouts": 0}.items():
        require_whole(f"cluster.{key}", cluster[key], least)
    for key in ("wait", "dry_run"):
        require_bool(f"cluster.{key}", cluster[key])
    for key in ("cpus", "jobs_per_node"):
        if (value := cluster[key]) != AUTO and (not is_whole(value) or value < 1):
            raise UserError(f"cluster.{key} must be a whole number, 1 or more, or auto; got cluster.{key}={value}")
    for key in ("partition", "account", "memory", "after"):
        if not _is_word(cluster[key]) and cluster[key] is not None:
            raise UserError(f"cluster.{key} must be a name or a number, or null; got cluster.{key}={cluster[key]}")
    if not isinstance(cluster["setup"], list) or not all(isinstance(line, str) for line in cluster["setup"]):
        raise UserError(
            f"cluster.setup must be a list of lines, such as ['module load cuda']; got cluster.setup={cluster['setup']}"
        )
    options = cluster["options"]
    if not isinstance(options, dict) or not all(_is_word(value) for value in options.values()):
        raise UserError(
            "cluster.options must hold names and numbers, such as +cluster.options.constraint=a100; "
            f"got cluster.options={options}"
        )
    for option in sorted(OWN.keys() & options.keys()):
        raise UserError(f"cluster.options must not have {option}, which is {OWN[option]}")


def _is_word(value: Any) -> bool:
    return isinstance(value, str) or is_whole(value)


def _partitions(named: str | int | None) -> dict[str, list[list[str]]]:
    """Return what sinfo says of the nodes of each partition: its name, CPUs, MB, resources and time limit.

    Args:
        named: a partition, or several with commas between; None is the default of the cluster.

    Raises:
        UserError: if a partition does not exist.
    """
    rows = [line.split("|") for line in _ask("sinfo", "--noheader", "--format=%R|%P|%c|%m|%G|%l").splitlines()]
    default = [row[0] for row in rows if row[1].endswith("*")][:1]
    names = default if named is None else str(named).split(",")
    if not names or not {*names} <= {row[0] for row in rows}:
        choice = f"got cluster.partition={named}" if names else "this cluster has no default; set it"
        known = ", ".join(sorted({row[0] for row in rows}))
        raise UserError(f"cluster.partition must be a partition of SLURM, one of {known}; {choice}")
    return {name: [row for row in rows if row[0] == name] for name in names}


def _require_minutes(minutes: int, partitions: Mapping[str, Sequence[Sequence[str]]]) -> None:
    """Require that a partition lets jobs run so long: SLURM would take longer ones, and never start them.

    Raises:
        UserError: if none does.
    """
    limits = {name: _minutes(rows[0][5]) for name, rows in partitions.items()}
    name, longest = max(limits.items(), key=lambda limit: limit[1])
    if minutes > longest:
        rule = f"cluster.minutes must be at most {longest:g}, the time limit of partition {name}"
        raise UserError(f"{rule}; got cluster.minutes={minutes}")


def _minutes(limit: str) -> float:
    """Return a time limit of SLURM, such as ``infinite``, ``30:00``, ``8:00:00`` or ``7-00:00:00``, in minutes."""
    if not limit[:1].isdecimal():  # infinite, n/a
        return math.inf
    days, _, clock = limit.rpartition("-")
    hours, minutes, seconds = map(int, f"0:0:{clock}".split(":")[-3:])
    return (int(days or 0) * 24 + hours) * 60 + minutes + seconds / 60


def _share(wanted: int, partitions: Mapping[str, Sequence[Sequence[str]]]) -> tuple[int, int]:
    """Return the share of so many GPUs in the cores and the MB of a node; of several partitions, the smallest.

    Raises:
        UserError: if no node of a partition has as many GPUs.
    """
    shares = [_share_of(name, rows, wanted) for name, rows in partitions.items()]
    return min(cores for cores, _ in shares), min(megabytes for _, megabytes in shares)


def _share_of(partition: str, rows: Sequence[Sequence[str]], wanted: int) -> tuple[int, int]:
    """Return the share of so many GPUs in the cores and the MB of the node of a partition with the most GPUs."""
    nodes = [(_gpus(row[4]), int(re.sub(r"\D", "", row[2])), int(re.sub(r"\D", "", row[3]))) for row in rows]
    gpus, cores, megabytes = max(nodes)
    if wanted > gpus:
        raise UserError(
            f"cluster.gpus must be at most {gpus}, which a node of partition {partition} has; got cluster.gpus={wanted}"
            + (". Write cluster.gpus=0 to run on CPUs." if not gpus else "")
        )
    return (cores * wanted // gpus, megabytes * wanted // gpus) if gpus else (0, 0)


def _gpus(resources: str) -> int:
    """Return the number of GPUs in SLURM's list of a node, such as ``gpu:a100:4(S:0-1),shard:8``."""
    return sum(int(found) for found in re.findall(r"(?:^|,)gpu:(?:[^:,(]+:)?(\d+)", resources))


def _ask(*words: str) -> str:
    """Return what a command of SLURM prints.

    Raises:
        UserError: if it fails, with its own words.
    """
    # While a command runs, it has Hydra raise what jobs shall print on one line.
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"{words[0]} failed"
        # Its controller is down, or cannot be reached from here.
        answer = "does not answer; type the same command again later" if UNREACHABLE.search(said) else "refuses"
        raise UserError(f"SLURM {answer}: {said}")
    return done.stdout


@dataclass(frozen=True)
class Submitted:
    """Arrays of jobs that SLURM has.

    Args:
        parts: the jobs of SLURM, as parts of the sweep.
        arrays: the id of each array, and how many jobs it has.
    """

    parts: Parts
    arrays: dict[str, int]

    @property
    def ids(self) -> str:
        """The ids, as SLURM's dependencies take them."""
        return ":".join(self.arrays)


def submit(command: str, jobs: Sequence[Sequence[str]], common: Sequence[str], asked: Asked, folder: Path) -> Submitted:
    """Submit the jobs of a sweep.

    Args:
        command: its name.
        jobs: the overrides of each.
        common: overrides of Hydra's own for all.
        asked: what each job of SLURM asks for.
        folder: where the files of the jobs and their logs are.

    Raises:
        UserError: if SLURM refuses an array; it names those that it has taken before.
    """
    parts, arrays = divided(jobs, asked.each, common, folder), {}
    for first in range(0, len(parts.numbers), LARGEST):
        count = min(LARGEST, len(parts.numbers) - first)
        script = parts.folder / ("array.sh" if not first else f"array-{first}.sh")
        script.write_text(_script(command, asked, parts.folder, parts.words, first, count))
        try:
            arrays[_ask("sbatch", "--parsable", str(script)).strip().split(";")[0]] = count
        except UserError as refused:
            if not arrays:
                raise
            ids = " ".join(arrays)
            raise UserError(
                f"{refused}; but it has taken the first {first} jobs of {len(parts.numbers)}, as {ids}. Wait for their "
                f"end, or type scancel {ids}, before you type the command again"
            ) from None
    return Submitted(parts, arrays)


def submit_command(name: str, words: Sequence[str], asked: Asked, folder: Path) -> tuple[str, Path]:
    """Submit one command, and return the id of its job and the log."""
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"{name}-{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    log, script = folder / f"{stem}.log", folder / f"{stem}.sh"
    counted = _timeouts(asked, shlex.quote(str(folder / f"{stem}.timeouts")))
    lines = [*_head(name, asked, {"output": str(log).replace("%", "%%")}), counted, f"exec {shlex.join(words)}", ""]
    script.write_text("\n".join(lines))
    return _ask("sbatch", "--parsable", str(script)).strip().split(";")[0], log


def _script(command: str, asked: Asked, folder: Path, words: Sequence[str], first: int, count: int) -> str:
    # The numbers of a second array begin at LARGEST, and those of its jobs at 0.
    log = f"{folder}/".replace("%", "%%") + (f"{first // LARGEST}%3a.log" if first else "%a.log")
    lines = [
        *_head(command, asked, {"array": f"0-{count - 1}", "output": log}),
        f"number=$(({first} + SLURM_ARRAY_TASK_ID)) folder={shlex.quote(str(folder))}",
        _timeouts(asked, '"$folder/$number.timeouts"'),
        f"exec {shlex.join(words)} \"hydra.sweeper.listed='$folder/$number.json'\"",
        "",
    ]
    return "\n".join(lines)


def _head(name: str, asked: Asked, more: Mapping[str, str]) -> list[str]:
    """Return the first lines of a batch script, up to the command."""
    options = {
        "job-name": f"mergestream-{name}",
        **asked.options,
        **more,
        "signal": "B:USR1@120",
        "open-mode": "append",
    }
    lines = [f"#SBATCH {shlex.quote(f'--{key}={value}')}" for key, value in options.items()]
    return ["#!/bin/bash", *lines, "#SBATCH --requeue", *asked.setup, f"cd {shlex.quote(os.getcwd())}"]


def _timeouts(asked: Asked, file: str) -> str:
    """Return the line of a batch script for `interrupt.requeue`; the file is in the shell's words."""
    # The lines of cluster.setup before it may have taken minutes; bash counts in SECONDS since it started.
    end = f"$(($(date +%s) - SECONDS + {60 * int(asked.options['time'])}))"
    return f'export {interrupt.TIMEOUTS}="{asked.timeouts} {end} "{file}'


def wait(submitted: Submitted) -> dict[int, list[str]]:
    """Wait for the end of all jobs.

    Returns:
        For each job of SLURM that failed, by its number, the lines that say why.

    Raises:
        Stopped: at a signal; the jobs go on.
        UserError: if SLURM does not answer any more.
    """
    states: dict[int, str] = {}
    heard, pause, before = time.monotonic(), 0.5, False
    told: set[str] = set()
    words = ["squeue", "--noheader", "--array", "--states=all", "--format=%F|%K|%T|%r"]
    try:
        while True:
            done = subprocess.run([*words, f"--jobs={','.join(submitted.arrays)}"], capture_output=True, text=True)
            told |= _tell(done.stdout, told)
            if done.returncode == 0 or FORGETFUL in done.stderr:
                heard = time.monotonic()
                over = _update(states, done.stdout, submitted)
                if over and before:  # a job that is just started again may look ended for a moment
                    break
                before = over
            elif time.monotonic() - heard > PATIENCE:
                raise UserError(
                    f"SLURM has not answered for {PATIENCE / 60:g} minutes ({' '.join(done.stderr.split())}); "
                    f"the jobs may go on: squeue --jobs={','.join(submitted.arrays)}"
                )
            time.sleep(pause)
            pause = min(1.5 * pause, 15.0)
    except Stopped as stopped:
        ids = " ".join(submitted.arrays)
        raise Stopped(stopped.signum, f"stopped waiting; the jobs go on. scancel {ids} ends them") from None
    return {
        number: submitted.parts.why(number, state.lower()) for number, state in states.items() if state != "COMPLETED"
    }


def _tell(shown: str, told: set[str]) -> set[str]:
    """Print for what jobs wait, but for `USUAL` and what was told before. Return what was printed."""
    waiting = (line.split("|") for line in shown.splitlines())
    reasons = {f"{array} wait: {reason}" for array, _, state, reason in waiting if state == "PENDING"}
    new = {line for line in reasons if line.rpartition(": ")[2] not in USUAL} - told
    for line in sorted(new):
        print(f"jobs of {line}", flush=True)
    return new


def _update(states: dict[int, str], shown: str, submitted: Submitted) -> bool:
    """Take over the states that SLURM shows, by the number of the job. Return whether all jobs are over."""
    offsets = dict(zip(submitted.arrays, range(0, len(submitted.parts.numbers), LARGEST), strict=False))
    running = 0
    for line in shown.splitlines():
        array, task, state, _ = line.split("|")
        if task.isdecimal():
            states[offsets[array] + int(task)] = state
        running += state not in OVER
    for number in range(len(submitted.parts.numbers)):
        known = states.get(number)
        if not running and (known is None or known not in OVER):  # SLURM has forgotten it
            states[number] = "of unknown end"
    return not running
