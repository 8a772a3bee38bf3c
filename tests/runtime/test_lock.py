"""A folder whose last writer removes it while the next one creates it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mergestream.runtime import lock


def test_a_folder_that_goes_while_it_is_created_is_created_again(tmp_path, monkeypatch):
    """What `mkdir` raises if `rmdir` of another process comes between its steps."""
    raised, mkdir = [FileExistsError(), FileNotFoundError()], Path.mkdir

    def interrupted(path, *arguments, **options):
        if raised:
            raise raised.pop()
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", interrupted)
    with lock.turn(tmp_path / "a" / "b", "works"):
        assert list((tmp_path / "a" / "b").glob(".lock-*"))
    assert not list(tmp_path.iterdir())


def test_a_folder_that_goes_before_it_is_read_is_created_again(tmp_path, monkeypatch):
    gone, listdir = [tmp_path / "a"], os.listdir

    def late(path):
        if gone:
            gone.pop().rmdir()
        return listdir(path)

    monkeypatch.setattr(os, "listdir", late)
    with lock.held(tmp_path / "a"):
        assert list((tmp_path / "a").glob(".lock-*"))


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_file_in_the_place_of_the_folder_is_an_error(name, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), lock.held(tmp_path / name):
        pass
