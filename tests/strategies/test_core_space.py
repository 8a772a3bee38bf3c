"""Core Space on encoders that are saved whole."""

from __future__ import annotations

import pytest
import torch
from weights import draw, merge, refused, write

ZERO = {"a": torch.zeros(6, 5), "b": torch.zeros(4, 3), "c": torch.zeros(9)}
TUNED = [{name: draw(*of.shape, seed=seed) for name, of in ZERO.items()} for seed in (1, 2)]


def test_a_rank_may_be_above_that_of_some_matrices(tmp_path):
    paths = write(tmp_path, ZERO, *TUNED)
    merges = [merge(tmp_path, *paths, strategy="core_space", rule="magmax", rank=rank)[0] for rank in (None, 5, 4)]
    assert all(torch.equal(merges[1][name], merges[0][name]) for name in ZERO)
    assert [name for name in ZERO if not torch.equal(merges[2][name], merges[0][name])] == ["a"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 6}, "strategy.rank must be a whole number, between 1 and 5; got strategy.rank=6"),
        ({"rank": 0}, "strategy.rank must be a whole number, between 1 and 5; got strategy.rank=0"),
        ({"rule": "knots"}, "strategy.rule must be one of average, iso_c, magmax, task_arithmetic, ties, tsv; got"),
        ({"rule": "ties", "density": 0}, r"strategy.density must be a fraction in \(0, 1\]; got strategy.density=0"),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    refused(tmp_path, message, *write(tmp_path, ZERO, *TUNED), strategy="core_space", **options)
