"""Where a weight lies in the network, by its name."""

from __future__ import annotations

import re

import pytest
import torch

from mergestream.models import tiny
from mergestream.runtime.errors import UserError
from mergestream.strategies.depth import Depth, depths, interpolated

# name → (block, blocks) inside of the blocks; "first" or "last" outside of them.
OPEN_CLIP = {
    "visual.class_embedding": "first",
    "visual.positional_embedding": "first",
    "visual.proj": "last",
    "visual.conv1.weight": "first",
    "visual.ln_pre.weight": "first",
    "visual.transformer.resblocks.0.attn.in_proj_weight": (0, 3),
    "visual.transformer.resblocks.2.mlp.c_fc.weight": (2, 3),
    "visual.transformer.resblocks.1.ln_1.bias": (1, 3),
    "visual.ln_post.bias": "last",
    "transformer.resblocks.0.mlp.c_proj.weight": (0, 2),  # the text tower has a depth of its own
    "transformer.resblocks.1.mlp.c_proj.weight": (1, 2),
    "token_embedding.weight": "first",
    "ln_final.weight": "last",
    "text_projection": "last",
}
HUGGINGFACE = {
    "vision_model.embeddings.patch_embedding.weight": "first",
    "vision_model.pre_layrnorm.weight": "first",
    "vision_model.encoder.layers.0.self_attn.q_proj.weight": (0, 12),
    "vision_model.encoder.layers.11.mlp.fc1.weight": (11, 12),
    **{f"vision_model.encoder.layers.{i}.layer_norm1.bias": (i, 12) for i in range(1, 11)},
    "vision_model.post_layernorm.weight": "last",
    "visual_projection.weight": "last",
}
LLAMA = {
    "model.embed_tokens.weight": "first",
    "model.layers.0.self_attn.q_proj.weight": (0, 2),
    "model.layers.1.mlp.down_proj.weight": (1, 2),
    "model.norm.weight": "last",
    "lm_head.weight": "last",
}
BERT = {
    "bert.embeddings.LayerNorm.weight": "first",
    "bert.encoder.layer.0.attention.self.query.weight": (0, 2),
    "bert.encoder.layer.1.output.dense.weight": (1, 2),
    "bert.pooler.dense.weight": "last",
    "classifier.weight": "last",
}
GPT2 = {"wte.weight": "first", "h.0.attn.c_attn.weight": (0, 2), "h.1.mlp.c_fc.weight": (1, 2), "ln_f.bias": "last"}
T5 = {
    "shared.weight": "first",
    "encoder.block.0.layer.0.SelfAttention.q.weight": (0, 2),
    "encoder.block.1.layer.1.DenseReluDense.wo.weight": (1, 2),
    "decoder.block.0.layer.2.layer_norm.weight": (0, 3),
    "decoder.block.1.layer.2.layer_norm.weight": (1, 3),
    "decoder.block.2.layer.2.layer_norm.weight": (2, 3),
}
TIMM = {
    "visual.trunk.cls_token": "first",
    "visual.trunk.patch_embed.proj.weight": "first",
    "visual.trunk.blocks.0.attn.qkv.weight": (0, 2),
    "visual.trunk.blocks.1.mlp.fc1.weight": (1, 2),
    "visual.trunk.norm.weight": "last",
    "visual.head.proj.weight": "last",
}
RESNET = {
    "visual.conv1.weight": "first",
    "visual.bn1.weight": "first",
    "visual.layer1.0.conv1.weight": (0, 3),
    "visual.layer1.1.conv1.weight": (1, 3),
    "visual.layer2.0.downsample.0.weight": (2, 3),
    "visual.attnpool.q_proj.weight": "last",
}
SWIN = {
    "patch_embed.proj.weight": "first",
    "layers.0.blocks.0.attn.qkv.weight": (0, 4),
    "layers.0.blocks.1.attn.qkv.weight": (1, 4),
    "layers.1.downsample.norm.weight": (2, 4),  # belongs to the first block of its stage
    "layers.1.blocks.0.attn.qkv.weight": (2, 4),
    "layers.1.blocks.1.norm1.weight": (3, 4),
    "norm.weight": "last",
}


@pytest.mark.parametrize("model", [OPEN_CLIP, HUGGINGFACE, LLAMA, BERT, GPT2, T5, TIMM, RESNET, SWIN])
def test_names_of_the_libraries(model):
    expected = {
        name: Depth(last=where == "last") if isinstance(where, str) else Depth(*where) for name, where in model.items()
    }
    assert depths(model, "depth") == expected
    assert depths(reversed(model), "depth") == expected


def test_the_tower_of_a_model_that_ships():
    with torch.device("meta"):
        names = tiny.tower().state_dict()
    found = depths(names, "depth")
    assert {where.block for where in found.values()} == {None, 0, 1, 2, 3}
    assert {where.blocks for where in found.values()} == {0, 4}
    outside = {name: where.last for name, where in found.items() if where.block is None}
    assert [name for name, last in outside.items() if last] == ["proj", "ln_post.weight", "ln_post.bias"]
    assert {name for name, last in outside.items() if not last} == {
        *("class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias")
    }


def test_fractions():
    assert [Depth(at, 5).fraction for at in range(5)] == [0, 0.25, 0.5, 0.75, 1]
    assert (Depth().fraction, Depth(last=True).fraction, Depth(0, 1).fraction) == (0, 1, 0)


@pytest.mark.parametrize(
    "names", [[], ["w", "fc.weight"], ["blocks.0.w", "blocks.0.b"], ["conv1.weight", "head.0.weight"]]
)
def test_names_without_blocks_are_refused(names):
    with pytest.raises(UserError, match=re.escape("depth needs weights in two or more numbered blocks, such as")):
        depths(names, "depth")


def test_interpolation_as_in_mergekit():
    assert [interpolated([1, 0.5], at / 4) for at in range(5)] == [1, 0.875, 0.75, 0.625, 0.5]
    assert [interpolated([0, 1, 0.5], at / 4) for at in range(5)] == [0, 0.5, 1, 0.75, 0.5]
    assert interpolated([3.0, 3.0, 3.0, 3.0], 1 / 3) == 3
