"""A run to analyse, which nobody had to train."""

from __future__ import annotations

from pathlib import Path

import pytest
from made_up import TAUS, subject_of

from mergestream.analysis.subject import Subject


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    """A run of independent fine-tuning with the task vectors `TAUS`."""
    return subject_of(tmp_path, TAUS, "method=ind")
