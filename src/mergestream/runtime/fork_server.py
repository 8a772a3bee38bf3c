"""Starts processes from a server that has already imported torch, Lightning and open_clip.

With spawn, the default of elastic, every process imports them anew, which takes about eight seconds of a core. The
server starts with the first job that needs it and ends with the command, so a sweep imports once. It has one thread and
never touches a GPU: either would break the processes that are forked from it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing import forkserver, resource_tracker

from mergestream.runtime import interrupt

# System libraries of macOS do not survive a fork.
START_METHOD = "forkserver" if sys.platform == "linux" else "spawn"
ENDED = 255  # exit code that Python reports for every process when the server has ended
_AT_IMPORT = dict(os.environ)  # in a forked process: the environment with which the server was started


def start(modules: Sequence[str]) -> None:
    """Start the server unless it is running, and wait until it has imported `modules`.

    The server and its children block the signals that ask to stop until `enter`: one that is sent to the whole process
    group, such as Ctrl-C, must not end the server, and one that reaches a process too early waits for it.
    """
    if START_METHOD != "forkserver":
        return
    forkserver.set_forkserver_preload(list(modules))
    resource_tracker.ensure_running()  # the server starts it otherwise, and that unblocks the signals
    before = signal.pthread_sigmask(signal.SIG_BLOCK, interrupt.SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # A launcher that is stopped while it waits leaves a process that does nothing, instead of one that fails.
    first = multiprocessing.get_context("forkserver").Process(target=_do_nothing)
    first.start()
    first.join()


def _do_nothing() -> None:
    pass


def enter(environment: Mapping[str, str]) -> None:
    """Prepare a new process, which has installed its signal handlers: take over its launcher's environment and fate.

    Args:
        environment: of the launcher. The process has the variables of the server's start instead, and those that
            elastic has set since, which stay.
    """
    elastic = {name: value for name, value in os.environ.items() if _AT_IMPORT.get(name) != value}
    os.environ.clear()
    os.environ.update({**environment, **elastic})
    threading.Thread(target=_follow_launcher, daemon=True).start()
    if START_METHOD == "forkserver":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt.SIGNALS)


def _follow_launcher() -> None:
    """Stop this process when its launcher has died. The system would do so if the launcher were its parent."""
    if launcher := multiprocessing.parent_process():
        launcher.join()
        os.kill(os.getpid(), signal.SIGINT)
