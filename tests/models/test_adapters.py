"""LoRA adapters of an image tower: their arithmetic, and their files as peft reads them."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrize

from mergestream.models.adapters import (
    LoRA,
    adapter_config,
    adapter_tensors,
    attach,
    load_adapter,
    load_weights,
    reset,
)
from mergestream.models.tiny import tower
from mergestream.runtime.errors import UserError

ALL = LoRA(8, 4, ("in_proj", "c_fc", "c_proj"))


def changed(lora: LoRA = ALL) -> nn.Module:
    """The tiny tower with adapters that change it."""
    torch.manual_seed(1)
    encoder = tower().eval()
    attach(encoder, lora, seed=3)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in encoder.named_parameters():
        if name.endswith(".B"):
            parameter.data = torch.randn(parameter.shape, generator=generator) / 10
    return encoder


def plain() -> nn.Module:
    torch.manual_seed(1)
    return tower().eval()


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))


def test_new_adapters_change_nothing_and_alone_are_trained(images):
    encoder = plain()
    before = encoder(images)
    attach(encoder, ALL, seed=3)
    assert torch.equal(encoder(images), before)
    trained = {name.rpartition(".")[2] for name, p in encoder.named_parameters() if p.requires_grad}
    assert trained == {"A", "B"}
    encoder(images).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in encoder.parameters())


def test_the_first_values_are_those_of_peft():
    """A is uniform in ±1/√n, n the inputs of the layer, and the draw of a layer does not depend on other targets."""
    encoder, alone = plain(), plain()
    attach(encoder, ALL, seed=3)
    attach(alone, LoRA(8, 4, ("c_proj",)), seed=3)
    name = "base_model.model.transformer.resblocks.2.mlp.c_proj.lora_A.weight"
    A = adapter_tensors(encoder)[name].clone()
    assert A.shape == (8, 512)
    assert 0.99 / 512**0.5 < A.abs().max() <= 1 / 512**0.5
    assert abs(A.std() * (3 * 512) ** 0.5 - 1) < 0.05
    assert torch.equal(A, adapter_tensors(alone)[name])
    reset(encoder, seed=4)
    assert not torch.equal(A, adapter_tensors(encoder)[name])


def test_names_and_shapes():
    tensors = adapter_tensors(changed())
    block = "base_model.model.transformer.resblocks.3."
    assert {name.removeprefix(block): tuple(t.shape) for name, t in tensors.items() if name.startswith(block)} == {
        "attn.lora_A.weight": (8, 128),
        "attn.lora_B.weight": (384, 8),
        "attn.base_layer.out_proj.lora_A.weight": (8, 128),
        "attn.base_layer.out_proj.lora_B.weight": (128, 8),
        "mlp.c_fc.lora_A.weight": (8, 128),
        "mlp.c_fc.lora_B.weight": (512, 8),
        "mlp.c_proj.lora_A.weight": (8, 512),
        "mlp.c_proj.lora_B.weight": (128, 8),
    }
    assert len(tensors) == 4 * 8


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # peft's own
@pytest.mark.parametrize("targets", [("in_proj", "c_fc", "c_proj"), ("in_proj",), ("c_proj",)])
def test_peft_reads_them(images, tmp_path, targets):
    from peft import PeftModel

    lora = LoRA(8, 4, targets)
    encoder = changed(lora)
    save_file({n: t.contiguous() for n, t in adapter_tensors(encoder).items()}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter_config(encoder, lora)))
    loaded = PeftModel.from_pretrained(plain(), tmp_path).eval()
    torch.testing.assert_close(loaded(images), encoder(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(loaded.merge_and_unload()(images), encoder(images), rtol=0, atol=1e-5)
    assert not torch.allclose(plain()(images), encoder(images), atol=1e-2)


def test_adapters_are_loaded_and_weights_replace_them(images):
    encoder, other = changed(), plain()
    attach(other, ALL, seed=9)
    load_adapter(other, adapter_tensors(encoder))
    assert torch.equal(other(images), encoder(images))
    torch.manual_seed(7)
    third = tower().eval()
    load_weights(encoder, third.state_dict())
    assert torch.equal(encoder(images), third(images))


def test_16_bit_arithmetic_does_not_round_the_update():
    encoder = changed()
    attention = encoder.transformer.resblocks[0].attn
    exact = attention.in_proj_weight
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention.in_proj_weight, exact)
    assert parametrize.is_parametrized(attention, "in_proj_weight")


class Normalised(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)


@pytest.mark.parametrize(
    ("encoder", "lora", "message"),
    [
        (Normalised(), LoRA(1, 1, ("c_fc",)), "without batch normalisation"),
        (nn.Sequential(nn.Conv2d(1, 1, 1)), LoRA(1, 1, ("c_fc",)), "image tower, which has none; got c_fc"),
        (nn.ModuleDict({"fc": nn.Linear(3, 9)}), LoRA(1, 1, ("fc", "qkv")), "which has fc; got qkv"),
        (nn.ModuleDict({"fc": nn.Linear(3, 9)}), LoRA(4, 1, ("fc",)), r"at most 3, since fc is \[9, 3\]; got .*=4"),
    ],
)
def test_towers_that_cannot_have_them_stay_as_they_are(encoder, lora, message):
    before = {name: p.requires_grad for name, p in encoder.named_parameters()}
    with pytest.raises(UserError, match=message):
        attach(encoder, lora, seed=1)
    assert {name: p.requires_grad for name, p in encoder.named_parameters()} == before
