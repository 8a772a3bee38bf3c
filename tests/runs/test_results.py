"""metrics.json: which commit it records."""

from __future__ import annotations

import subprocess

from mergestream.runs import results


def git(folder, *words):
    name = ("-c", "user.name=a", "-c", "user.email=a@localhost")
    return subprocess.run(["git", *name, *words], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_a_commit_is_recorded_only_where_git_tracks_the_package(tmp_path, monkeypatch):
    package = tmp_path / ".venv/results.py"
    package.parent.mkdir()
    package.write_text("")
    monkeypatch.setattr(results, "__file__", str(package))
    assert results.git_state() is None  # no repository
    git(tmp_path, "init")
    git(tmp_path, "commit", "--allow-empty", "--message", "theirs")
    assert results.git_state() is None  # somebody else's repository around a virtual environment
    git(tmp_path, "add", "--force", ".venv/results.py")
    git(tmp_path, "commit", "--message", "ours")
    assert results.git_state() == {"commit": git(tmp_path, "rev-parse", "HEAD"), "dirty": False}
    (tmp_path / "new").write_text("")
    assert results.git_state()["dirty"]
