"""What every entry script shares: errors as one line on stderr, and exit codes that a shell can use.

Kept light: this module is imported before Hydra composes anything, so it imports no torch.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import hydra
import omegaconf
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf.errors import OmegaConfBaseException

from mergestream.runtime import interrupt
from mergestream.runtime.errors import UserError, one_line
from mergestream.runtime.processes import rank

_reporting = False  # whether `launch` turns errors into lines
_failed_jobs: list[str] = []


def launch(main: Callable[[], None]) -> None:
    """Call a ``@hydra.main`` function; exit with 1 and one line when the command line or the config is wrong.

    With ``HYDRA_FULL_ERROR=1`` in the environment nothing is caught, so the traceback shows.
    """
    if os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0"):
        main()
        return
    global _reporting
    _reporting = True
    _failed_jobs.clear()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its exceptions instead of printing them
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        _print_error(_one_line(error))
        sys.exit(1)
    except Exception as error:
        if one_line(error) is None and not _while_composing(error):
            raise
        _print_error(_one_line(error))
        sys.exit(1)
    except KeyboardInterrupt:  # before or after the job
        sys.exit(130)
    except interrupt.Stopped as stopped:
        if rank() == 0:
            print(stopped.message, file=sys.stderr)
            if stopped.signum == signal.SIGUSR1 and "SLURM_JOB_ID" in os.environ:
                print(interrupt.requeue(), file=sys.stderr)
        sys.exit(stopped.code)
    finally:
        _reporting = False
        del os.environ["HYDRA_FULL_ERROR"]
    if _failed_jobs:
        sys.exit(1)


@contextmanager
def job() -> Iterator[None]:
    """Around the body of one Hydra job: a `UserError` ends a single run, or is reported and skipped in a sweep.

    Signals that ask to stop end the run and the sweep, with the work saved.
    """
    try:
        with interrupt.watching():
            yield
    except (UserError, OmegaConfBaseException, OSError) as error:
        if not _reporting or (one_line(error) is None and isinstance(error, OSError)):
            raise
        context = HydraConfig.get()
        if context.mode == RunMode.MULTIRUN:
            # The other jobs of a sweep are worth finishing; `launch` still exits with 1.
            _print_error(f"job {context.job.num} ({context.job.override_dirname}): {_one_line(error)}")
            _failed_jobs.append(context.job.override_dirname)
        else:
            _print_error(_one_line(error))
            sys.exit(1)


def _while_composing(error: BaseException) -> bool:
    """Whether Hydra itself stumbled: over an override of a kind that it does not foresee, such as ``GROUP=null``."""
    frames = traceback.extract_tb(error.__traceback__)
    packages = tuple(os.path.dirname(str(package.__file__)) + os.sep for package in (hydra, omegaconf))
    return bool(frames) and frames[-1].filename.startswith(packages)


def _one_line(error: BaseException) -> str:
    if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group} must be one of {', '.join(error.options)}; got {group}={option}"
    if isinstance(error, OverrideParseException):
        return f"an override is KEY=VALUE in Hydra's grammar; got {error.override}, which cannot be read. Quote it?"
    if (line := one_line(error)) is not None:
        return line
    cause = error.__cause__
    text = f"{error} {cause}" if isinstance(cause, OmegaConfBaseException) else str(error)
    if (key := getattr(error, "full_key", None)) and str(key) not in text.splitlines()[0]:
        text = f"{key}: {text}"
    elif not isinstance(error, (HydraException, OmegaConfBaseException)) or "nterpolation" in text:
        text = f"{text} (got {' '.join(sys.argv[1:])})"  # neither says where
    # OmegaConf appends "full_key: …" and "object_type=…" lines; Hydra wraps its hints over several.
    lines = [line.strip() for line in text.splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type=")))


def _print_error(message: str) -> None:
    # One line, whatever control characters were typed.
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)
    print(f"error: {shown}", file=sys.stderr)
