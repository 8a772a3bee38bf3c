"""``pipeline.py``, ``mergestream-pipeline``: train, merge and report, here or as dependent jobs of SLURM."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from mergestream.cli import slurm
from mergestream.cli.command import DEBUG, Command, config_dir
from mergestream.compose.overrides import MERGE_KEYS
from mergestream.compose.run import merges_every_task
from mergestream.runtime.errors import UserError
from mergestream.runtime.interrupt import Signals, Stopped
from mergestream.runtime.processes import environment
from mergestream.runtime.rules import require_bool

STAGES = ("train", "merge", "report")
OWN = ("stages", "dry_run")
ANYWHERE = ("experiment", "hydra", "cluster")


def run(words: Sequence[str]) -> int:
    """Run the stages.

    Args:
        words: the overrides that were typed.

    Returns:
        The exit code: that of the first stage that fails.
    """
    words = [word for word in words if word not in ("-m", "--multirun")]
    cfg = _composed("pipeline", words)
    stages, dry = list(cfg.stages), cfg.dry_run or cfg.cluster.dry_run
    if not stages or [stage for stage in STAGES if stage in stages] != stages:
        raise UserError(f"stages must be some of {', '.join(STAGES)}, in this order; got stages={stages}")
    require_bool("dry_run", dry)
    if dry:
        stages = [stage for stage in stages if stage != "report"]
    on_slurm, after = cfg.cluster.name == "slurm", None
    for stage in stages:
        command = [*_program(stage), *_words_of(stage, words, cfg)]
        if stage == "report" and on_slurm:
            _submit_report(command, cfg, after)
            continue
        command += ["cluster.dry_run=true"] if dry else []
        if on_slurm and not dry:
            command += ["cluster.wait=false", *([f"cluster.after='{after}'"] if after else [])]
        code, said = _call(command)
        if code:
            return _given_up(stage, code, after)
        after = said and (found := re.search(r"^submitted .* as ([\d:]+); ", said, re.MULTILINE)) and found[1]
    return 0


def _composed(name: str, words: Sequence[str]) -> DictConfig:
    """Compose a config of the first of the jobs that the words mean."""
    (jobs,) = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(list(words)), None)
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose(name, list(jobs[0]))


def _program(stage: str) -> list[str]:
    """Return how to start a stage: the script or the command beside this one."""
    own = Path(sys.argv[0])
    program = os.path.abspath(own.with_name(own.name.replace("pipeline", stage)))
    return [sys.executable, program] if own.suffix == ".py" else [program]


def _words_of(stage: str, words: Sequence[str], cfg: DictConfig) -> list[str]:
    """Return the overrides that a stage knows."""
    if stage == "report":
        return [f"root='{cfg.root}'"]
    known = {*_composed(stage, []), *ANYWHERE}
    if stage == "train" and not merges_every_task(cfg):
        known -= {*MERGE_KEYS}  # two strategies do not make two trainings
    own = [word for word in words if _first(word) not in OWN]
    return ["--multirun", *(word for word in own if _first(word) in known)]


def _first(word: str) -> str:
    """Return the first part of the key of an override."""
    return re.split(r"[=.@/]", word.lstrip("+~"), maxsplit=1)[0]


def _call(command: Sequence[str]) -> tuple[int, str]:
    """Run a command to its end, and pass on signals. Return its exit code, and what it printed on SLURM."""
    capture = "cluster.wait=false" in command
    # A group of its own: Ctrl-C would reach it twice.
    process = subprocess.Popen(command, stdout=subprocess.PIPE if capture else None, text=True, preexec_fn=os.setpgrp)
    while True:
        try:
            said, _ = process.communicate()
            break
        except Stopped as stopped:
            process.send_signal(stopped.signum)
    if capture:
        print(said, end="")
    return process.returncode, said or ""


def _given_up(stage: str, code: int, after: str | None) -> int:
    """Say which jobs go on although a later stage could not be submitted."""
    if after:
        print(
            f"{stage} was not submitted; the jobs before it go on: scancel {after.replace(':', ' ')}", file=sys.stderr
        )
    return code if code > 0 else 128 - code


def _submit_report(command: Sequence[str], cfg: DictConfig, after: str | None) -> None:
    """Submit the report as a job that waits for those of the stage before."""
    cluster: dict[str, Any] = OmegaConf.to_container(cfg.cluster, resolve=True)  # type: ignore[assignment]
    alone = {"gpus": 0, "cpus": "auto", "memory": "auto", "jobs_per_node": 1, "after": after}
    job, log = slurm.submit_command(
        "report", command, slurm.asked({**cluster, **alone}, False), Path(cfg.root) / "_sweeps"
    )
    print(f"submitted report as {job}; log in {log}")


def _work(cfg: DictConfig, signals: Signals, shared: dict[str, Any]) -> None:
    raise AssertionError("the stages are commands of their own")


class Pipeline(Command):
    """The command line of the pipeline, which composes no job itself."""

    def compose_and_run(self, main: Callable[[], None]) -> None:
        """Run the stages, or answer ``--help`` and its like."""
        if any(word.startswith("-") and word not in ("-m", "--multirun") for word in sys.argv[1:]):
            main()
            return
        # Each stage is a command of its own, and shows its errors as the user wants them.
        with environment(DEBUG, "0" if self.one_line_errors else "1"):
            code = run(sys.argv[1:])
        if code:
            sys.exit(code)


main = Pipeline("pipeline", _work)
