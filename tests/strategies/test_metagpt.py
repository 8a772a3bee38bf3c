"""MetaGPT: the weights of the tasks."""

from __future__ import annotations

import torch
from weights import merge, write


def test_weights_are_squared_lengths_over_the_whole_model(tmp_path):
    # ‖τ_1‖² = 1 + 8 = 9, ‖τ_2‖² = 1, so λ = (0.9, 0.1).
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    one = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([2.0, 2.0])}
    two = {"a": torch.tensor([0.0, 1.0]), "b": torch.zeros(2)}
    merged, _ = merge(tmp_path, *write(tmp_path, base, one, two), strategy="metagpt")
    torch.testing.assert_close(merged["a"], torch.tensor([0.9, 0.1]))
    torch.testing.assert_close(merged["b"], torch.tensor([1.8, 1.8]))


def test_tasks_that_changed_nothing_leave_the_base(tmp_path):
    base = {"a": torch.ones(3)}
    merged, _ = merge(tmp_path, *write(tmp_path, base, base, base), strategy="metagpt")
    assert torch.equal(merged["a"], base["a"])
