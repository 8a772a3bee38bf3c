"""A folder that all nodes of a run must share."""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import suppress
from pathlib import Path

from mergestream.runtime import processes
from mergestream.runtime.errors import AgreedError

PATIENCE = 10.0  # seconds that a file server may take to show one node what another wrote


def require_shared(folder: Path) -> None:
    """Check that every process sees what the first one writes to `folder`. All processes call this.

    Raises:
        AgreedError: if one does not; the message names the folder and the nodes.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    node, _, token = str(processes.gathered(f"{socket.gethostname()} {uuid.uuid4().hex}")[0]).partition(" ")
    probe = folder / f".shared-{token}"
    processes.together(lambda: _write(probe) if processes.is_first() else None)
    try:
        blind = processes.gathered(None if _appears(probe) else socket.gethostname())
    finally:
        if processes.is_first():
            probe.unlink(missing_ok=True)
            for path in made:  # innermost first
                with suppress(OSError):
                    path.rmdir()
    if names := sorted({name for name in blind if name is not None}):
        raise AgreedError(
            f"root must be a folder that all nodes share; what {node} wrote to {folder.absolute()} does not appear on "
            f"{', '.join(names)}. Write root=PATH on a file system that all nodes mount."
        )


def _write(probe: Path) -> None:
    probe.parent.mkdir(parents=True, exist_ok=True)
    probe.touch()


def _appears(probe: Path) -> bool:
    """Return whether the file is there, within the time that a file server may take."""
    until = time.monotonic() + PATIENCE
    while not probe.exists():
        if time.monotonic() > until:
            return False
        with suppress(OSError):
            os.listdir(probe.parent)  # makes NFS ask its server
        time.sleep(0.1)
    return True
