"""A cluster that `make test-slurm` has started. Without one, these tests are not collected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

collect_ignore_glob = [] if "MERGESTREAM_SLURM" in os.environ else ["test_*.py"]


@pytest.fixture
def cluster(tmp_path: Path):
    from slurm.cluster import Cluster

    return Cluster(tmp_path)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The tensor files of one process, uninterrupted."""
    from slurm.cluster import trained
    from slurm.runs import PLAIN

    return trained(tmp_path_factory.mktemp("one"), *PLAIN)
