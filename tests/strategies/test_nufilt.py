"""NUFILT: what the two variants do with the first task, which weights are merged, and what is refused."""

from __future__ import annotations

import pytest
import torch
from weights import draw, merge, refused, write

SMALL = {"null_rank": 2, "task_rank": 2, "rank": 3}
ATTENTION = "blocks.0.attn.qkv.weight"


def merged(folder, *taus, name=ATTENTION, **options):
    """The merged task vector of one weight."""
    paths = write(folder, {name: torch.zeros(taus[0].shape)}, *({name: tau} for tau in taus))
    return merge(folder, *paths, strategy="nufilt", **{**SMALL, **options})[0][name]


def test_a_single_task_returns_that_task_or_loses_columns(tmp_path):
    tau = draw(6, 5)
    assert torch.equal(merged(tmp_path, tau, variant="corrected"), tau)
    lost = torch.cat([torch.zeros(6, 2), tau[:, 2:]], 1)
    torch.testing.assert_close(merged(tmp_path, tau), lost)


def test_without_training_the_past_answers_as_before_on_its_directions(tmp_path):
    one, two = draw(6, 5, seed=1), draw(6, 5, seed=2)
    result = merged(tmp_path, one, two, variant="corrected", steps=0)
    V = torch.linalg.svd(one).Vh.T
    torch.testing.assert_close(result @ V[:, :2], one @ V[:, :2], rtol=0, atol=1e-5)
    torch.testing.assert_close((result - one) @ V[:, 2:], two @ V[:, 2:], rtol=0, atol=1e-5)


def test_training_lowers_the_loss(tmp_path):
    one, two = draw(20, 12, seed=1), draw(20, 12, seed=2)
    V, W = (torch.linalg.svd(tau).Vh[:2].T for tau in (one, two))

    def loss(steps):
        result = merged(tmp_path, one, two, variant="corrected", steps=steps, rank=12, lr=0.01)
        return float(((two - result) @ W).square().sum() + ((one - result) @ V).square().sum())

    assert loss(300) < 0.5 * loss(0)


def test_scaling_the_task_vectors_scales_the_merge(tmp_path):
    taus = [draw(6, 5, seed=seed) for seed in (1, 2, 3)]
    for variant in ("published", "corrected"):
        once = merged(tmp_path, *taus, variant=variant)
        torch.testing.assert_close(
            merged(tmp_path, *(8 * t for t in taus), variant=variant), 8 * once, rtol=0, atol=1e-4
        )


def test_a_task_that_changed_nothing_adds_nothing(tmp_path):
    one, zero = draw(6, 5), torch.zeros(6, 5)
    for taus in ((one, zero), (zero, one)):
        torch.testing.assert_close(merged(tmp_path, *taus, variant="corrected"), one)


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("visual.transformer.resblocks.0.attn.in_proj_weight", True),
        ("visual.transformer.resblocks.0.attn.out_proj.weight", True),
        ("visual.transformer.resblocks.0.mlp.c_fc.weight", True),
        ("visual.transformer.resblocks.0.mlp.c_proj.weight", False),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", True),
        ("vision_model.encoder.layers.0.mlp.fc1.weight", True),
        ("vision_model.encoder.layers.0.mlp.fc2.weight", False),
        ("visual.trunk.blocks.0.attn.proj.weight", True),
        ("visual.trunk.blocks.0.mlp.fc2.weight", False),
        ("visual.positional_embedding", False),
        ("visual.proj", False),
    ],
)
def test_attention_and_the_first_mlp_matrix_are_merged(name, chosen, tmp_path):
    base = {name: torch.zeros(6, 5), ATTENTION: torch.zeros(6, 5)}
    paths = write(tmp_path, base, {name: draw(6, 5), ATTENTION: draw(6, 5)})
    result = merge(tmp_path, *paths, strategy="nufilt", variant="corrected", **SMALL)[0][name]
    assert torch.equal(result, draw(6, 5) if chosen else torch.zeros(6, 5))


def test_a_null_space_of_every_input_is_said(tmp_path):
    paths = write(tmp_path, {ATTENTION: torch.zeros(6, 5)}, {ATTENTION: draw(6, 5)})
    _, said = merge(tmp_path, *paths, strategy="nufilt", **{**SMALL, "null_rank": 5})
    assert "strategy.null_rank=5 protects every input of blocks.0.attn.qkv.weight" in said[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "fixed"}, "strategy.variant must be one of published, corrected; got strategy.variant=fixed"),
        ({"null_rank": 6}, r"strategy.null_rank must be at most 5, for blocks.* of shape \[6, 5\]; got .*=6. Write"),
        ({"task_rank": 6}, "strategy.task_rank must be at most 5"),
        ({"rank": 6}, "strategy.rank must be at most 5"),
        ({"rank": -1}, "strategy.rank must be a whole number, 0 or more; got strategy.rank=-1"),
        ({"steps": 0.5}, "strategy.steps must be a whole number"),
        ({"lr": 0}, "strategy.lr must be a number, positive; got strategy.lr=0"),
        ({"layers": "attn."}, "strategy.layers must be a list of parts of names; got strategy.layers=attn."),
        ({"layers": ["conv"]}, r"none of 1, such as blocks.0.attn.qkv.weight, has .* in strategy.layers=\['conv'\]"),
    ],
)
def test_bad_options_are_refused(options, message, tmp_path):
    paths = write(tmp_path, {ATTENTION: torch.zeros(6, 5)}, {ATTENTION: draw(6, 5)})
    refused(tmp_path, message, *paths, strategy="nufilt", **{**SMALL, **options})
