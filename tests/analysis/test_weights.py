"""Where weights are in a network, and whose value MagMax takes."""

from __future__ import annotations

import numpy as np
import torch
from open_clip.modified_resnet import ModifiedResNet

from mergestream.analysis.weights import blocks_and_kinds, count_values, magmax_tasks, sum_by_weight
from mergestream.merging.vectors import Block


def test_blocks_and_kinds_of_a_transformer():
    found = blocks_and_kinds(
        [f"transformer.resblocks.{block}.attn.in_proj_weight" for block in range(12)] + ["ln.bias"]
    )
    assert found["transformer.resblocks.11.attn.in_proj_weight"] == (11, "attn.in_proj_weight")
    assert found["ln.bias"] == (None, "ln.bias")


def test_blocks_are_counted_through_all_stages():
    found = blocks_and_kinds(f"layer{stage}.{block}.conv1.weight" for stage in (2, 1) for block in (0, 1))
    names = [f"layer{stage}.{block}.conv1.weight" for stage in (1, 2) for block in (0, 1)]
    assert [found[name] for name in names] == [(i, "conv1.weight") for i in range(4)]
    name = "layer1.0.downsample.0.weight"
    assert blocks_and_kinds([name]) == {name: (0, "downsample.0.weight")}
    names = ["stages.1.blocks.2.norm.weight", "stages.0.blocks.0.norm.weight", "blocks.7.1.bias"]
    assert list(blocks_and_kinds(names).values()) == [(2, "norm.weight"), (1, "norm.weight"), (0, "bias")]


def test_blocks_of_a_resnet():
    found = blocks_and_kinds(ModifiedResNet([3, 4, 6, 3], output_dim=8, heads=2, width=8).state_dict())
    assert max(block for block, _ in found.values() if block is not None) == 3 + 4 + 6 + 3 - 1


def test_magmax_takes_the_later_of_equal_magnitudes_and_no_zeros():
    taus = torch.tensor([[3.0, -1.0, 0.0, 2.0], [-3.0, 0.5, 0.0, -2.0], [1.0, 0.0, 0.0, 2.0]])
    assert magmax_tasks(taus).tolist() == [1, 0, -1, 2]


def test_negative_values_are_not_counted():
    assert count_values(torch.tensor([0, 2, -1, 2]), 4).tolist() == [1, 0, 2, 0]


def test_results_of_blocks_are_summed_by_weight():
    blocks = [Block("a", 0, 3, (3,)), Block("b", 0, 2, (2,)), Block("a", 3, 1, (1,))]
    sums = sum_by_weight(blocks, [np.array([1, 2]), np.array([5, 6]), np.array([10, 20])])
    assert {name: (size, total.tolist()) for name, (size, total) in sums.items()} == {
        "a": (4, [11, 22]),
        "b": (2, [5, 6]),
    }
