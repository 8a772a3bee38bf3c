"""Reports without figures, for tests of all else."""

from __future__ import annotations

import pytest


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw nothing, which takes most of the time of a small report."""
    monkeypatch.setattr("mergestream.reporting.run._pictures", lambda job: [])
