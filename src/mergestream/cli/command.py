"""Shared by all commands: where the configs are, errors as one line on stderr, and exit codes for the shell.

Imports no torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import hydra
import omegaconf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mergestream.cli.dry_run import Look
from mergestream.compose.overrides import unknown
from mergestream.runtime import interrupt
from mergestream.runtime.errors import ProcessError, UserError, first_line, one_line, program
from mergestream.runtime.interrupt import Signals, Stopped
from mergestream.runtime.processes import environment, placement, rank
from mergestream.strategies.reference import references

PLACES = ("local", "slurm", "ray")  # the options of the config group `cluster`
DEBUG = "HYDRA_FULL_ERROR"  # the environment variable with which Hydra, and we, show tracebacks


def config_dir() -> Path:
    """Return the folder of the YAML files: inside an installed package, at the top of a checkout."""
    package = Path(__file__).parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def _published() -> str:
    """Return where each strategy was published, for ``--help``."""
    found = references()
    width = max(map(len, found))
    return "\n".join(["== Strategies ==", *(f"{name:<{width}}  {of}" for name, of in found.items())])


class Command:
    """One command line: composes its config with Hydra and runs `work` for it, or for every config of a sweep.

    Args:
        name: the name of its config.
        work: ``work(cfg, signals, shared)``, called for each job; `shared` is a dict that the jobs of a sweep share.
        parallel: whether several processes may work together on a job.
        modules: what `work` imports, for processes that import it before they start to work.
        look: cfg → whether a job is finished and how long it took, without working on it; None if nobody can say.

    Attributes:
        is_guest: whether another process has started this one to run jobs of its sweep, and hears of signals.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[DictConfig, Signals, dict[str, Any]], None],
        *,
        parallel: bool = False,
        modules: Sequence[str] = (),
        look: Callable[[DictConfig], Look] | None = None,
    ):
        self.name, self.work, self.parallel, self.modules, self.look = name, work, parallel, modules, look
        self.one_line_errors, self.is_guest = False, False
        self.failed: list[str] = []
        self.saved = False
        self.shared: dict[str, Any] = {}

    def __call__(self) -> None:
        """Compose and run. Exit with 1 and one line per error that the user can fix.

        With ``HYDRA_FULL_ERROR=1`` in the environment, errors show their traceback instead.
        """
        here = placement()
        if here.size > 1 and not self.parallel:
            rule = f"{program(self.name)} runs in one process; {here.launcher} started {here.size}. Start one."
            _exit_with(UserError(rule))
        OmegaConf.register_new_resolver("published", _published, replace=True)
        main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=self.name)(self.run_job)
        self.one_line_errors = os.environ.get(DEBUG, "0") in ("", "0")
        if not self.one_line_errors:
            self.compose_and_run(main)
            return
        try:
            with environment(DEBUG, "1"):  # makes Hydra raise its exceptions instead of printing them
                self._run(main)
        finally:
            if self.saved:
                interrupt.note_saved()
            self.shared.clear()
            self.saved = False
        if self.failed:
            self.failed.clear()
            sys.exit(1)

    def compose_and_run(self, main: Callable[[], None]) -> None:
        """Run Hydra's `main`, which composes the config and calls `run_job`."""
        main()

    def guest(self) -> Command:
        """Return this command for another process, which runs jobs of its sweep and tells it of signals."""
        guest = Command(self.name, self.work, parallel=self.parallel, modules=self.modules)
        guest.one_line_errors, guest.is_guest = self.one_line_errors, True
        return guest

    def run_job(self, cfg: DictConfig) -> None:
        """Run one job. A `UserError` ends a single run; in a sweep it is printed and the other jobs go on.

        A signal ends the run or the whole sweep, after the work is saved.
        """
        try:
            _require_sweep(cfg)
            with interrupt.watching() as signals:
                self.work(cfg, signals, self.shared)
            self.saved |= signals.saved
        except Stopped as stopped:
            if self.is_guest:
                raise
            self.saved |= stopped.saved
            _leave(stopped, self.saved, signals.inherited.get(stopped.signum))
        except (UserError, OmegaConfBaseException, OSError) as error:
            if not self.one_line_errors or (one_line(error) is None and isinstance(error, OSError)):
                raise
            context = HydraConfig.get()
            if context.mode != RunMode.MULTIRUN or isinstance(error, ProcessError):
                _exit_with(error)
            if rank() == 0:
                print_error(f"job {context.job.num} ({context.job.override_dirname}): {_explain(error)}")
            self.failed.append(context.job.override_dirname)

    def _run(self, main: Callable[[], None]) -> None:
        signals = Signals()
        try:
            with interrupt.watching() as signals:
                self.compose_and_run(main)
        except (HydraException, OmegaConfBaseException) as error:
            _exit_with(error)
        except Exception as error:
            if one_line(error) is None and not _raised_by_hydra(error):
                raise
            _exit_with(error)
        except Stopped as stopped:  # before or after the job, or while jobs run side by side
            self.saved |= stopped.saved
            _leave(stopped, self.saved, signals.inherited.get(stopped.signum))


def _leave(stopped: Stopped, saved: bool, inherited: interrupt.Handler | None) -> NoReturn:
    """Say what became of the work, have the job started again if its time was up, and exit.

    Args:
        stopped: why the job stopped.
        saved: whether anything new was saved.
        inherited: what somebody else does when this signal arrives; submitit requeues its jobs.
    """
    if rank() == 0:
        print(stopped.message, file=sys.stderr)
    time_is_up = stopped.signum in interrupt.TIME_IS_UP
    if inherited is not None and time_is_up:
        try:
            inherited(stopped.signum, None)
        except Exception as error:  # submitit's, of a job that has used up its time-outs
            print_error(first_line(error))
            sys.exit(1)
    elif time_is_up and "SLURM_JOB_ID" in os.environ:
        if rank() == 0:
            print(interrupt.requeue(saved), file=sys.stderr)
        else:
            time.sleep(10)  # srun may end all processes with the first that fails, and process 0 is asking SLURM
    sys.exit(stopped.code)


def place_of(cfg: DictConfig) -> str:
    """Return where the jobs of a sweep run, the name of the config group `cluster`.

    Raises:
        UserError: if it is none of its options.
    """
    if (place := OmegaConf.select(cfg, "cluster.name", default=PLACES[0])) not in PLACES:
        raise UserError(f"cluster.name must be one of {', '.join(PLACES)}; got cluster.name={place}")
    return place


def _require_sweep(cfg: DictConfig) -> None:
    """Check that a single run is not asked to run elsewhere."""
    place = place_of(cfg)
    if place != "local" and HydraConfig.get().mode != RunMode.MULTIRUN:
        raise UserError(f"cluster={place} is for sweeps, and for experiments; write -m for a single run, too")


def _raised_by_hydra(error: BaseException) -> bool:
    """Return whether Hydra or OmegaConf failed on an override that it does not foresee, such as ``GROUP=null``."""
    frames = traceback.extract_tb(error.__traceback__)
    packages = tuple(os.path.dirname(str(package.__file__)) + os.sep for package in (hydra, omegaconf))
    return bool(frames) and frames[-1].filename.startswith(packages)


def _explain(error: BaseException) -> str:
    """Return the line that tells the user what is wrong."""
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group} must be one of {', '.join(error.options)}; got {group}={option}"
    if isinstance(error, OverrideParseException):
        return f"an override must be KEY=VALUE in Hydra's grammar; got {error.override}. Does it need quotes?"
    if (line := one_line(error) or _unknown_key(error)) is not None:
        return line
    cause = error.__cause__
    text = f"{error} {cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
    if (key := getattr(error, "full_key", None)) and str(key) not in text.splitlines()[0]:
        text = f"{key}: {text}"
    elif not isinstance(error, (HydraException, OmegaConfBaseException)) or "nterpolation" in text:
        text = f"{text} (got {' '.join(sys.argv[1:])})"  # these errors do not say where
    # OmegaConf appends "full_key: …" and "object_type=…" lines, and Hydra wraps its hints over several lines.
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))


def _unknown_key(error: BaseException) -> str | None:
    """Return a line on an override of a key that the config does not have; None if the error is another."""
    cause = error.__cause__
    if not isinstance(cause, OmegaConfBaseException) or not str(error).startswith("Could not override"):
        return None
    parent, key = cause.parent_node, cause.full_key
    keys = sorted(str(k) for k in parent if not str(k).startswith("_")) if isinstance(parent, DictConfig) else []
    if not keys:
        return None
    if group := str(key).rpartition(".")[0]:
        _, *hint = str(error).splitlines()
        return f"unknown key: {key}; {group} has {', '.join(keys)}. {' '.join(hint)}"
    return unknown(str(key), keys, str(key))


def _exit_with(error: BaseException) -> NoReturn:
    if rank() == 0 or isinstance(error, ProcessError):  # all others meet the error of the first
        print_error(_explain(error))
    sys.exit(1)


def print_error(message: str) -> None:
    """Print an error on one line of stderr."""
    # Whatever control characters were typed.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"error: {shown}", file=sys.stderr)
