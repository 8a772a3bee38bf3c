"""One writer for a directory, on any file system: a lock file made in one step, and a heartbeat.

No flock: over NFS it holds on some servers, on others for one machine only, and on some not at all.
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

NAME = ".lock"
HEARTBEAT = 10.0  # seconds between signs of life
STALE = 60.0  # seconds without one, after which a process on another machine counts as dead


class Lock:
    """A held lock; its thread touches the file until it is released.

    Args:
        path: the lock file.
        token: that tells it from all other locks.
    """

    def __init__(self, path: Path, token: str):
        self.path, self.token = path, token
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    def check(self) -> None:
        """
        Raises:
            UserError: if somebody has taken the lock over, as when this machine slept.
        """
        held = _read(self.path)
        if held is None or held.get("token") != self.token:
            raise UserError(
                f"{self.path.parent} was taken over by {_owner(held) if held else 'another process'} while this one "
                "was not running; nothing more is written here"
            )

    def release(self) -> None:
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
    """Make `folder` if need be, and be its only writer within the block; folders that stay empty go again.

    Raises:
        UserError: if another process is, naming it.
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


def _acquire(folder: Path) -> Lock:
    """Locks are numbered. Who finds none alive links his own to the next number, which one process alone can do."""
    token = uuid.uuid4().hex
    content = {"host": socket.gethostname(), "pid": os.getpid(), "machine": _machine(), "born": _born(os.getpid())}
    content |= {"since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": token}
    while True:
        folder.mkdir(parents=True, exist_ok=True)  # its last writer may just have removed it
        found = _locks(folder)
        if alive := [other for path, other in found.items() if _alive(other, path)]:
            raise UserError(
                f"a run directory has one writer; {folder} is being written by {_owner(alive[0])}. Wait for it, or "
                "write tag=NAME for a second run beside it."
            )
        path = folder / f"{NAME}-{1 + max((_number(path) for path in found), default=-1)}"
        # A file of our own, linked to the lock's name: one step on every file system, and never seen half-written.
        own = folder / f"{NAME}-{token}"
        try:
            own.write_text(json.dumps(content))
            os.link(own, path)
        except (FileExistsError, FileNotFoundError):
            continue  # somebody was faster, or has removed the folder
        finally:
            own.unlink(missing_ok=True)
        others = {other: held for other, held in _locks(folder).items() if other != path}
        if any(_alive(held, other) for other, held in others.items()):
            # It looked before we linked, and started to count anew. Both step back; one comes first next time.
            path.unlink(missing_ok=True)
            time.sleep(random.uniform(0, 0.2))
            continue
        for other in others:  # dead; nobody makes one with a number below ours
            other.unlink(missing_ok=True)
        return Lock(path, token)


def _locks(folder: Path) -> dict[Path, dict]:
    """The locks of a folder, and what they hold."""
    paths = [path for path in folder.glob(f"{NAME}-*") if path.name.removeprefix(f"{NAME}-").isdecimal()]
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


def _owner(content: dict) -> str:
    return f"process {content.get('pid', '?')} on {content.get('host', '?')} since {content.get('since', '?')}"


def _alive(content: dict, path: Path) -> bool:
    """Whether the process that holds a lock still runs: known at once on its machine, by its heartbeat from others."""
    if content.get("machine") == _machine():
        return content.get("born") is not None and _born(content.get("pid", 0)) == content["born"]
    # The file server's clock, not ours: the age is the difference to a file that it makes now.
    probe = path.with_name(f"{NAME}-{uuid.uuid4().hex}")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime < STALE
    except FileNotFoundError:
        return False
    finally:
        probe.unlink(missing_ok=True)


def _machine() -> str:
    """This machine since it was started; containers with processes of their own count as machines."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _born(pid: int) -> str | None:
    """When a process of this machine was started, so that a number that is used again is not taken for it."""
    try:
        fields = Path(f"/proc/{int(pid)}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # a zombie writes nothing any more
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
