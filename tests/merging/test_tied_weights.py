"""Tied weights are merged once and stay tied; infinities of masks stay; float64 is read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from weights import DATA_FREE, QUICK, draw, merge, refused, write

from mergestream.merging import merge_checkpoints
from mergestream.merging.tensors import TensorFile

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def tied(seed, kind="shared", folder=None):
    """A language model, whose head is its embedding; written to a folder, which is returned."""
    embedding = draw(16, 10, seed=seed)
    state = {"model.w": draw(40, seed=seed + 100), EMBED: embedding, HEAD: embedding}
    folder = folder / f"{kind}-{seed}"
    folder.mkdir()
    if kind == "shared":
        torch.save(state, folder / "pytorch_model.bin")
    elif kind == "old format":
        torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif kind in ("dropped", "head dropped"):
        del state[EMBED if kind == "dropped" else HEAD]
        save_file(state, folder / "model.safetensors")
    else:  # both in the file, and what its config says
        save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "model.safetensors")
        if kind != "equal":
            config = {"tie_word_embeddings": kind == "configured"}
            (folder / "config.json").write_text(json.dumps({"text_config": config} if seed % 2 else config))
    return folder


def once(folder, name, seeds):
    """Files with one name, the reference."""
    return write(folder, *({"model.w": draw(40, seed=s + 100), name: draw(16, 10, seed=s)} for s in seeds))


@pytest.mark.parametrize("kind", ["shared", "old format", "configured", "equal"])
@pytest.mark.parametrize("strategy", ["random_mix", "dare", "ties"])
def test_tied_weights_are_merged_once(strategy, kind, tmp_path):
    merged, _ = merge(tmp_path, *(tied(seed, kind, tmp_path) for seed in range(3)), strategy=strategy)
    first = EMBED if kind in ("shared", "old format") else HEAD  # in the order of the file
    expected, _ = merge(tmp_path, *once(tmp_path, first, range(3)), strategy=strategy)
    assert torch.equal(merged[HEAD], merged[EMBED])
    for name, tensor in expected.items():
        assert torch.equal(merged[name], tensor), name  # draws the same, and counts as often in thresholds


@pytest.mark.parametrize("name", DATA_FREE)
def test_every_strategy_keeps_ties(name, tmp_path):
    merged, _ = merge(tmp_path, *(tied(s, folder=tmp_path) for s in range(3)), strategy=name, **QUICK.get(name, {}))
    assert torch.equal(merged[HEAD], merged[EMBED])
    assert not torch.equal(merged[HEAD], draw(16, 10))


def test_a_tie_has_the_value_of_a_plain_loop(tmp_path):
    merged, _ = merge(tmp_path, *(tied(seed, folder=tmp_path) for seed in range(4)), scale=0.7)
    base, *tasks = (draw(16, 10, seed=seed).double() for seed in range(4))
    expected = base.clone()
    for task in tasks:
        expected += 0.7 / 3 * (task - base)
    for name in (EMBED, HEAD):
        torch.testing.assert_close(merged[name].double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("base", ["shared", "configured", "equal", "dropped", "head dropped"])
@pytest.mark.parametrize("tuned", ["shared", "configured", "equal", "dropped", "head dropped"])
def test_files_may_keep_one_name_or_both(base, tuned, tmp_path):
    """safetensors drops one of the names; any file can be the base of any other that has a name in common."""
    paths = [tied(0, base, tmp_path), tied(1, tuned, tmp_path)]
    if {base, tuned} == {"dropped", "head dropped"}:
        refused(tmp_path, "has no lm_head.weight|has no model.embed", *paths)
        return
    merged, said = merge(tmp_path, *paths)
    assert not said
    given = {"dropped": {HEAD}, "head dropped": {EMBED}}.get(base, {HEAD, EMBED})
    assert merged.keys() == given | {"model.w"}
    for name in given:
        torch.testing.assert_close(merged[name], draw(16, 10, seed=1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["shared", "configured"])
def test_a_checkpoint_that_unties_is_refused(kind, tmp_path):
    base, tuned = tied(0, kind, tmp_path), tied(1, "equal", tmp_path)
    state = load_file(tuned / "model.safetensors")
    save_file({**state, HEAD: state[HEAD] + 1}, tuned / "model.safetensors")
    refused(tmp_path, f"ties {HEAD} to {EMBED}, and they differ in .*equal-1|{EMBED} to {HEAD}", base, tuned)


@pytest.mark.parametrize("kind", ["equal", "untied"])
def test_names_that_are_not_tied_are_merged_apart(kind, tmp_path):
    """Equal in the base by chance, or untied by its config."""
    base, tuned = tied(0, kind, tmp_path), tied(1, "equal", tmp_path)
    state = load_file(tuned / "model.safetensors")
    save_file({**state, HEAD: state[HEAD] + 1}, tuned / "model.safetensors")
    merged, _ = merge(tmp_path, base, tuned)
    torch.testing.assert_close(merged[HEAD], merged[EMBED] + 1)


@pytest.mark.parametrize("strategy", ["random_mix", "ties"])
def test_tied_and_untied_tuned_checkpoints_of_an_untied_base(strategy, tmp_path):
    paths = [tied(0, "untied", tmp_path), tied(1, folder=tmp_path)]
    merged, _ = merge(tmp_path, *paths, strategy=strategy, scale=1.0)
    plain, _ = merge(tmp_path, paths[0], tied(1, "untied", tmp_path), strategy=strategy, scale=1.0)
    assert all(torch.equal(merged[name], plain[name]) for name in plain)


def test_names_that_save_model_left_out(tmp_path):
    """safetensors' save_model writes one of two names, and the other into the metadata."""

    class Twice(torch.nn.Module):
        def __init__(self, seed):
            super().__init__()
            self.a = self.b = torch.nn.Linear(3, 2)
            self.a.weight.data, self.a.bias.data = draw(2, 3, seed=seed), draw(2, seed=seed + 9)

    save_model(Twice(1), tmp_path / "saved.safetensors")
    torch.save(Twice(0).state_dict(), tmp_path / "both.pt")
    merged, _ = merge(tmp_path, tmp_path / "both.pt", tmp_path / "saved.safetensors")
    assert set(merged) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    torch.testing.assert_close(merged["b.weight"], draw(2, 3, seed=1))
    merged, _ = merge(tmp_path, tmp_path / "saved.safetensors", tmp_path / "both.pt")
    assert set(merged) == {"a.weight", "a.bias"}
    torch.testing.assert_close(merged["a.weight"], draw(2, 3))


@pytest.mark.parametrize("kept", [slice(2, 5), slice(0, 3), (slice(None), slice(1, 2))])
def test_names_that_share_a_part_are_refused(kept, tmp_path):
    whole = draw(6, 4)
    torch.save({"w": whole, "part": whole[kept]}, tmp_path / "base.pt")
    refused(tmp_path, "(w and part|part and w) overlap in memory", tmp_path / "base.pt", tmp_path / "base.pt")


def test_pieces_of_one_memory_are_not_tied(tmp_path):
    whole = draw(6, 4)
    for kept in ((slice(0, 3), slice(3, 6)), ((slice(None), slice(0, 2)), (slice(None), slice(2, 4)))):
        torch.save({"a": whole[kept[0]], "b": whole[kept[1]]}, tmp_path / "base.pt")
        merged, _ = merge(tmp_path, tmp_path / "base.pt", tmp_path / "base.pt")
        assert torch.equal(merged["a"], whole[kept[0]])
        assert torch.equal(merged["b"], whole[kept[1]])


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_ties_in_folders_and_with_skipped_names(dtype, tmp_path):
    base, tuned = tied(0, folder=tmp_path), tied(1, folder=tmp_path)
    merge_checkpoints(base, [tuned], "random_mix", tmp_path / "merged", dtype=dtype)
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    assert torch.equal(merged[HEAD], merged[EMBED])
    assert merged[HEAD].dtype == (torch.float32 if dtype is None else torch.bfloat16)
    large = draw(17, 10)
    torch.save({"model.w": draw(40), EMBED: large, HEAD: large}, tuned / "pytorch_model.bin")
    merged, _ = merge(tmp_path, base, tuned, on_mismatch="skip")
    assert torch.equal(merged[HEAD], draw(16, 10))
    assert torch.equal(merged[EMBED], draw(16, 10))


# Models and adapters of transformers and peft


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "intermediate_size": 8, "vocab_size": 11}
    tokens = {"bos_token_id": 1, "eos_token_id": 2}
    return LlamaForCausalLM(LlamaConfig(num_attention_heads=2, tie_word_embeddings=True, **sizes, **tokens))


ADAPTERS = {  # what is changed: whether peft's merge stays tied
    "attention": ({"target_modules": ["q_proj"]}, True),
    "embedding": ({"target_modules": ["embed_tokens"]}, True),
    "head": ({"target_modules": ["lm_head"]}, True),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": {"embed_tokens": [2, 5]}}, True),
    "saved, tied": (
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
        True,
    ),
    "both": ({"target_modules": ["embed_tokens", "lm_head"]}, False),
    "saved embedding": ({"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}, False),
    "saved head": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
}


@pytest.mark.filterwarnings("ignore")  # peft's own
@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_of_tied_models(case, tmp_path):
    from peft import LoraConfig, get_peft_model

    settings, stays = ADAPTERS[case]
    llama().save_pretrained(tmp_path / "one name")
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "config.json").write_bytes((tmp_path / "one name" / "config.json").read_bytes())
    torch.save(llama().state_dict(), tmp_path / "both" / "pytorch_model.bin")
    tuned = get_peft_model(llama(), LoraConfig(r=2, lora_alpha=3, **settings))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    tuned.save_pretrained(tmp_path / "adapter")
    expected = tuned.merge_and_unload().state_dict()
    for base in (tmp_path / "one name", tmp_path / "both"):
        if not stays or (case == "head" and base.name == "one name"):
            refused(tmp_path, "unties|which .* ties|does not have", base, tmp_path / "adapter")
            continue
        merged, _ = merge(tmp_path, base, tmp_path / "adapter")
        assert expected.keys() - merged.keys() == ({HEAD} if base.name == "one name" else set())
        for name, tensor in merged.items():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


# Infinities


def masked(seed, dtype=torch.float32):
    mask = torch.full((5, 5), -torch.inf).triu(1)
    mask[0, 0] = torch.inf
    return {"mask": mask.to(dtype), "w": draw(6, 4, seed=seed).to(dtype)}


@pytest.mark.parametrize("name", DATA_FREE)
def test_equal_infinities_stay(name, tmp_path):
    paths = write(tmp_path, *(masked(seed) for seed in range(3)))
    merged, _ = merge(tmp_path, *paths, strategy=name, scale=-0.5, **QUICK.get(name, {}))
    assert torch.equal(merged["mask"], masked(0)["mask"])
    only, _ = merge(tmp_path, *(write(tmp_path, *({"w": masked(seed)["w"]} for seed in range(3)))), scale=-0.5)
    if name == "average":
        assert torch.equal(merged["w"], only["w"])
    assert merged["w"].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e5m2, torch.float64])
def test_infinities_of_other_types_stay(dtype, tmp_path):
    merged, _ = merge(tmp_path, *write(tmp_path, masked(0, dtype), masked(1, dtype), masked(2)))
    assert torch.equal(merged["mask"].float(), masked(0)["mask"])
    assert merged["mask"].dtype == dtype


@pytest.mark.parametrize("name", DATA_FREE)
@pytest.mark.parametrize(("ours", "theirs"), [("-inf", 0), (0, "inf"), ("inf", "-inf"), ("nan", "nan"), ("inf", "nan")])
def test_infinities_that_differ_are_refused(ours, theirs, name, tmp_path):
    states = [masked(seed) for seed in range(3)]
    for state, value in zip(states, (ours, ours, theirs), strict=True):
        state["mask"][3, 1] = float(value)
    at = 0 if ours == "nan" else 2
    message = rf"mask in .*{at}.safetensors has NaN or infinite values"
    refused(tmp_path, message, *write(tmp_path, *states), strategy=name, scale=-1, **QUICK.get(name, {}))


def test_an_adapter_leaves_infinities_alone(tmp_path):
    base = write(tmp_path, {"w.weight": draw(5, 3), **masked(0)})[0]
    folder = tmp_path / "adapter"
    folder.mkdir()
    factors = {"w.lora_A.weight": torch.ones(2, 3), "w.lora_B.weight": torch.ones(5, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "r": 2, "lora_alpha": 4}')
    for name in ("average", "ties"):
        merged, _ = merge(
            tmp_path, base, folder, strategy=name, scale=1.0, **({"density": 1} if name == "ties" else {})
        )
        torch.testing.assert_close(merged["w.weight"], draw(5, 3) + 4)
        assert torch.equal(merged["mask"], masked(0)["mask"])


# Double precision


@pytest.mark.parametrize("other", [torch.float64, torch.float32, torch.bfloat16])
def test_a_base_of_float64_is_read(other, tmp_path):
    base, tuned = {"w": draw(50).double() / 3}, {"w": draw(50, seed=1).to(other)}
    merged, said = merge(tmp_path, *write(tmp_path, base, tuned), scale=0.5)
    assert merged["w"].dtype == torch.float64
    expected = base["w"] + (tuned["w"].double() - base["w"]) / 2
    torch.testing.assert_close(merged["w"], expected, rtol=0, atol=1e-6)
    assert "computes in float32; w in" in said[0]
    half, _ = merge(tmp_path, *write(tmp_path, base, tuned), scale=0.5, dtype="bfloat16")
    assert torch.equal(half["w"], merged["w"].bfloat16())


def test_values_beyond_float32_are_refused(tmp_path):
    """They are no infinities that all files share."""
    states = [{"w": torch.tensor([1e300, float(i)], dtype=torch.float64)} for i in range(2)]
    refused(tmp_path, "w in .*0.safetensors has values that are too large", *write(tmp_path, *states))


def test_places_of_a_file_tell_ties(tmp_path):
    shared = draw(3, 1)
    torch.save({"a": shared, "b": shared, "view": shared.view(1, 3), "c": shared.clone()}, tmp_path / "1.pt")
    file = TensorFile(tmp_path / "1.pt")
    assert file.places["a"] == file.places["b"] != file.places["c"]
    assert set(file.overlap) == {"view", "b"}
    file.close()
