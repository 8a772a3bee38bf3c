"""A lock that gives a directory one writer on any file system: a lock file created atomically, and a heartbeat.

Not flock: over NFS, it works on some servers, only within one machine on others, and never on the rest.

Not flufl.lock 10: when eight processes found a stale lock, two or more of them acquired it in 7 of 40 trials. After a
killed holder, the same command had to wait for the lifetime of the lock and ten seconds (here it starts at once), and
the heartbeat and the message that names the holder would remain ours to write.
"""

from __future__ import annotations

import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mergestream.runtime.errors import UserError
from mergestream.runtime.processes import say

NAME = ".lock"
HEARTBEAT = 10.0  # seconds between two touches of the file
STALE = 60.0  # seconds without a touch, after which a holder on another machine counts as dead
PATIENCE = STALE + HEARTBEAT  # seconds that a job started again waits for the process that it replaces
MOMENT = 1.0  # seconds, after which a process that waits for its turn says so
ATTEMPTS = 100  # to create a folder, which others may remove
# The environment variable with the name of a task of Ray and how often that was started before.
TASK = "MERGESTREAM_TASK"


class HeldError(UserError):
    """Another process holds the lock."""


class Lock:
    """A held lock. A thread touches its file until it is released.

    Args:
        path: the lock file.
        token: a unique mark of this lock.
    """

    def __init__(self, path: Path, token: str):
        self.path, self.token = path, token
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """Check that this process still holds the lock.

        Raises:
            UserError: if another process took it over, for example while this machine was suspended.
        """
        held = _read(self.path)
        if held is None or held.get("token") != self.token:
            raise UserError(
                f"{self.path.parent} was taken over by {_holder(held) if held else 'another process'} while this one "
                "was suspended; this process writes nothing more there"
            )

    def release(self) -> None:
        """Stop the heartbeat and remove the lock file."""
        self._over.set()
        self._thread.join()
        if (_read(self.path) or {}).get("token") == self.token:
            self.path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._over.wait(HEARTBEAT):
            with suppress(OSError):
                os.utime(self.path)


@contextmanager
def held(folder: Path) -> Iterator[Lock]:
    """Be the only writer of `folder` within the block. Creates the folder, and removes it if it stays empty.

    A job that SLURM or Ray has started again waits until the lock of its killed process counts as dead.

    Raises:
        HeldError: if another process holds the lock; the message names it.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = _acquire(folder)
    try:
        yield lock
    finally:
        lock.release()
        for path in made:  # innermost first
            with suppress(OSError):
                path.rmdir()


@contextmanager
def turn(folder: Path, work: str) -> Iterator[Lock]:
    """Wait until no other process holds the lock of `folder`, and hold it within the block.

    Args:
        folder: see `held`.
        work: what the other process does, in words; shown if that takes more than a moment.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    began, said = time.monotonic(), False
    while True:
        try:
            lock = _acquire(folder)
            break
        except HeldError:
            waited = time.monotonic() - began
            if not said and waited >= MOMENT:
                say(f"waiting for another process, which {work}")
                said = True
            time.sleep(min(0.05 + waited / 10, 1.0, STALE / 10))
    try:
        yield lock
    finally:
        lock.release()
        for path in (folder, *made):
            with suppress(OSError):
                path.rmdir()


def _acquire(folder: Path) -> Lock:
    """Create the lock with the next free number, if no live process holds one. Only one process can link a number."""
    token = uuid.uuid4().hex
    content = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "born": _born(os.getpid())}
    content |= {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": token, **_job()}
    until = time.monotonic() + PATIENCE
    waiting = False
    while True:
        _make(folder)
        found = _locks(folder)
        if alive := [other for path, other in found.items() if _alive(other, path)]:
            if all(_replaced(other) for other in alive) and time.monotonic() < until:
                if not waiting:
                    say(f"waiting for the lock of {_holder(alive[0])}, an earlier start of this job")
                waiting = True
                time.sleep(min(1.0, STALE / 10))
                continue
            raise HeldError(
                f"a run directory has one writer; {folder} is being written by {_holder(alive[0])}. Wait for it, or "
                "write tag=NAME to start a second run beside it."
            )
        path = folder / f"{NAME}-{1 + max((_number(path) for path in found), default=-1)}"
        # Linking a finished file to the name of the lock is atomic on every file system.
        own = folder / f"{NAME}-{token}"
        try:
            own.write_text(json.dumps(content))
            os.link(own, path)
        except (FileExistsError, FileNotFoundError):
            continue  # another process was faster, or removed the folder
        finally:
            own.unlink(missing_ok=True)
        others = {other: held for other, held in _locks(folder).items() if other != path}
        if any(_alive(held, other) for other, held in others.items()):
            # It looked before we linked, and started from 0. Both back off; one wins the retry.
            path.unlink(missing_ok=True)
            time.sleep(random.uniform(0, 0.2))
            continue
        for other in others:  # dead; no process creates a number below ours
            other.unlink(missing_ok=True)
        return Lock(path, token)


def _make(folder: Path) -> None:
    """Create a folder, unless it exists. Its last writer may remove it at any moment, also between two steps of this.

    Raises:
        OSError: if it cannot be created, for example because it is a file.
    """
    for again in reversed(range(ATTEMPTS)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return
        except (FileExistsError, FileNotFoundError):
            if not again:
                raise


def _job() -> dict[str, int | str]:
    """Return the task of Ray or job of SLURM that this process is of, and its number of earlier starts; {} outside."""
    if task := os.environ.get(TASK):
        name, _, start = task.rpartition(" ")
        return {"job": name, "start": int(start)}
    job = os.environ.get("SLURM_JOB_ID")
    return {} if job is None else {"job": int(job), "start": int(os.environ.get("SLURM_RESTART_COUNT", 0))}


def _replaced(content: dict) -> bool:
    """Return whether the holder belongs to an earlier start of this job: SLURM ends its processes before the next."""
    own = _job()
    return bool(own) and content.get("job") == own["job"] and content.get("start", 0) < own["start"]


def _locks(folder: Path) -> dict[Path, dict]:
    """Return the locks of a folder and their contents; none if its last writer has removed it."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return {}
    paths = [folder / name for name in names if name.startswith(NAME) and name.removeprefix(f"{NAME}-").isdecimal()]
    contents = {path: _read(path) for path in paths if len(path.name) < 20}  # tokens are longer
    return {path: content for path, content in contents.items() if content is not None}


def _number(path: Path) -> int:
    return int(path.name.removeprefix(f"{NAME}-"))


def _read(path: Path) -> dict | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _holder(content: dict) -> str:
    return f"process {content.get('pid', '?')} on {content.get('host', '?')} since {content.get('since', '?')}"


def _alive(content: dict, path: Path) -> bool:
    """Return whether the holder of a lock still runs: by its process on this machine, by its heartbeat on others."""
    if content.get("machine") == _machine():
        return content.get("born") is not None and _born(content.get("pid", 0)) == content["born"]
    # Compare with a new file, so that only the clock of the file server counts.
    probe = path.with_name(f"{NAME}-{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime < STALE
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    """Return an id of this machine since its boot; a container with its own process ids is a machine of its own."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(pid: int) -> str | None:
    """Return when a process of this machine started, which tells it from a later process with the same id."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie no longer writes
    except (OSError, ValueError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return None
    try:  # no /proc, as on macOS
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"
