"""A signal ends a merge of files at once, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from helpers import command, forked
from weights import draw, write

from mergestream.merging import engine, output, run

assert run  # so that forked processes have imported what the command needs


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def slow(number):
    """Send a signal to this process, and then compute for long."""

    def work(*_, **__):
        os.kill(os.getpid(), number)
        time.sleep(60)
        os._exit(7)  # the process has waited for it

    return work


@pytest.mark.parametrize(
    ("place", "out", "number"),
    [
        ("_write", "new/merged", signal.SIGINT),  # in a thread of the pool
        ("_write", "merged.safetensors", signal.SIGTERM),
        ("_copy_unmerged", "new/merged", signal.SIGTERM),  # in the main thread, when all is computed
        ("_copy_unmerged", "merged.safetensors", signal.SIGINT),
    ],
)
def test_a_signal_ends_a_merge_at_once(place, out, number, tmp_path, monkeypatch):
    paths = write(tmp_path, {"w": draw(9)}, {"w": draw(9, seed=1)})
    words = [f"base={paths[0]}", f"checkpoints=[{paths[1]}]", "strategy=average", f"out={tmp_path / out}"]
    (tmp_path / "merged.safetensors").write_text("an earlier merge")
    before = contents(tmp_path)
    error = tmp_path.parent / f"{tmp_path.name}-error.txt"

    def work():
        monkeypatch.setattr(engine, place, slow(number))
        outcome = command("merge.py", *words)
        error.write_text(f"{outcome.code} {outcome.err}")
        for thread in set(threading.enumerate()) - {threading.main_thread()}:  # as Python does when it exits
            if not thread.daemon:
                thread.join()
        return outcome

    code = 128 + number
    assert forked(work).code == code
    name = signal.Signals(number).name
    assert error.read_text() == (
        f"{code} stopped by {name}; the unfinished merge was removed. Repeat the command to start again.\n"
    )
    assert contents(tmp_path) == before


def test_a_folder_that_was_there_stays(tmp_path, monkeypatch):
    """Also when the signal comes while the new folder is put in place of it."""
    paths = write(tmp_path, {"w": draw(9)}, {"w": draw(9, seed=1)})
    words = [f"base={paths[0]}", f"checkpoints=[{paths[1]}]", "strategy=average", f"out={tmp_path}/merged"]
    assert command("merge.py", *words).code == 0
    before = contents(tmp_path)

    def work():
        monkeypatch.setattr(output.shutil, "rmtree", slow(signal.SIGTERM))
        return command("merge.py", *words, "lambda=0.3")

    assert forked(work).code == 128 + signal.SIGTERM
    assert contents(tmp_path).items() >= before.items()
