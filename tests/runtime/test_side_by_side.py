"""Jobs that run side by side, in processes of their own."""

from __future__ import annotations

import os
import signal

import beside
import pytest

from mergestream.runtime.interrupt import Stopped
from mergestream.runtime.side_by_side import SideBySide


def test_lines_stay_whole_and_processes_take_several_jobs(capsys):
    jobs = [f"words of {number} " + "and more " * 20 for number in range(6)]
    ended = list(SideBySide(beside.say, 2, []).run(enumerate(jobs)))
    assert sorted(e.number for e in ended) == list(range(6))
    assert len({e.result for e in ended}) == 2
    assert os.getpid() not in {e.result for e in ended}
    expected = sorted(f"[{number}] {' '.join(words.split())} " for number, words in enumerate(jobs))
    assert sorted(capsys.readouterr().out.splitlines()) == expected


def test_a_process_that_dies_takes_one_job_along():
    ended = {e.number: e for e in SideBySide(beside.die, 2, []).run(enumerate(["a", "die", "b", "c"]))}
    assert ended[1].lost == "its process died (killed by SIGKILL); saved work is kept"
    assert sorted(number for number, e in ended.items() if e.result) == [0, 2, 3]


def test_a_signal_reaches_all_jobs_and_no_other_starts(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped:
        list(SideBySide(beside.stop, 2, []).run(enumerate((pid, tmp_path / "waits") for pid in (0, os.getpid(), 0))))
    assert stopped.value.signum == signal.SIGTERM
    assert sorted(stopped.value.message.splitlines()) == ["first stopped", "second stopped"]
    assert stopped.value.saved
    assert signal.getsignal(signal.SIGTERM) == before
