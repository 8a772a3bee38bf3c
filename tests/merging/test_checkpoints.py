"""Checkpoints as people keep them: shards, folders, adapters; and what is refused."""

from __future__ import annotations

import errno
import json
import os

import pytest
import torch
from helpers import command, files_below
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mergestream.merging import merge_checkpoints
from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_metadata


def model(seed, dtype=torch.bfloat16):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"embed.weight": (50, 8), "layers.0.weight": (300, 700), "layers.1.weight": (16, 8), "norm.weight": (8,)}
    tensors = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return {**tensors, "steps": torch.tensor([seed])}


def write_shards(folder, tensors, suffix="safetensors"):
    """Two shards, an index, and side files, as the Hugging Face Hub holds them."""
    folder.mkdir()
    names = list(tensors)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map = {}
    for i, part in enumerate((names[:2], names[2:]), start=1):
        name = f"{stem}-{i:05d}-of-00002.{suffix}"
        content = {key: tensors[key] for key in part}
        if suffix == "safetensors":
            save_file(content, folder / name, metadata={"format": "pt"})
        else:
            torch.save(content, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer.json").write_text("{}")
    return folder


def load_folder(folder):
    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_in_and_out(suffix, tmp_path):
    models = [model(seed) for seed in range(3)]
    paths = [write_shards(tmp_path / f"m{i}", m, suffix) for i, m in enumerate(models)]
    out = tmp_path / "merged"
    arguments = [f"base={paths[0]}", f"checkpoints=[{paths[1]},{paths[2]}]", "strategy=magmax", f"out={out}"]
    for _ in range(2):  # the second time it replaces what it wrote
        outcome = command("merge.py", *arguments)
        assert outcome.code == 0, outcome.err
    assert {p.name for p in files_below(out)} == {
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.json",
        "merge.json",
    }
    assert {p.name for p in tmp_path.iterdir()} == {"m0", "m1", "m2", "merged"}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    for name, shard in index["weight_map"].items():
        assert name in load_file(out / shard)
    merged = load_folder(out)
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in merged.values())
    single = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for m, path in zip(models, single, strict=True):
        save_file(m, path)
    merge_checkpoints(single[0], single[1:], "magmax", tmp_path / "s.safetensors")
    alone = load_file(tmp_path / "s.safetensors")
    assert merged.keys() == alone.keys()
    assert all(torch.equal(merged[name], alone[name]) for name in alone)
    with safe_open(out / "model-00001-of-00002.safetensors", framework="pt") as file:
        assert file.metadata()["format"] == "pt"  # what transformers asks for


def test_a_folder_with_other_things_is_not_replaced(tmp_path):
    base = write_shards(tmp_path / "b", model(0))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"out must be a new folder, or one that a merge wrote; out=.*home"):
        merge_checkpoints(base, [base], "average", tmp_path / "home")
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize(
    "damage", ["shard missing", "index lies", "index escapes", "two candidates", "nothing", "header"]
)
def test_damaged_folders_are_one_line(damage, tmp_path):
    base = write_shards(tmp_path / "b", model(0))
    index = base / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    if damage == "shard missing":
        (base / "model-00002-of-00002.safetensors").unlink()
    elif damage == "index lies":
        content["weight_map"]["other.weight"] = "model-00001-of-00002.safetensors"
    elif damage == "index escapes":
        content["weight_map"]["embed.weight"] = "../b/model-00001-of-00002.safetensors"
    elif damage == "header":
        shard = base / "model-00001-of-00002.safetensors"
        shard.write_bytes(b"\xff" * 40 + shard.read_bytes()[40:])
    index.write_text(json.dumps(content))
    if damage in ("two candidates", "nothing"):
        index.unlink()
    if damage == "nothing":
        for path in base.glob("*.safetensors"):
            path.unlink()
    out = tmp_path / "out"
    outcome = command("merge.py", f"base={base}", f"checkpoints=[{base}]", f"out={out}")
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err
    assert not out.exists()


def save_three(folder, base, *others):
    paths = [folder / f"{i}.safetensors" for i in range(1 + len(others))]
    for path, tensors in zip(paths, (base, *others), strict=True):
        save_file(tensors, path)
    return paths


def test_skip_keeps_the_base_and_says_so(tmp_path):
    base = {"same": torch.zeros(3), "shape": torch.zeros(2), "dtype": torch.zeros(2), "gone": torch.zeros(2)}
    one = {"same": torch.ones(3), "shape": torch.ones(2), "dtype": torch.ones(2), "gone": torch.ones(2)}
    two = {"same": torch.ones(3), "shape": torch.ones(3), "dtype": torch.ones(2).int(), "extra": torch.ones(2)}
    paths = save_three(tmp_path, base, one, two)
    out = tmp_path / "out.safetensors"
    arguments = [f"base={paths[0]}", f"checkpoints=[{paths[1]},{paths[2]}]", "strategy=average", f"out={out}"]
    outcome = command("merge.py", *arguments)
    assert outcome.code == 1
    assert "on_mismatch=skip" in outcome.err
    outcome = command("merge.py", *arguments, "on_mismatch=skip")
    assert outcome.code == 0, outcome.err
    assert "dtype, gone, shape" in outcome.out
    merged = load_file(out)
    assert merged.keys() == base.keys()
    assert merged["same"].tolist() == [1, 1, 1]
    assert all(not merged[name].any() for name in ("shape", "dtype", "gone"))
    with safe_open(out, framework="pt") as file:
        assert json.loads(file.metadata()["skipped"]) == ["dtype", "extra", "gone", "shape"]


def test_a_vision_tower_merges_into_a_whole_clip(tmp_path):
    """Fine-tunes of CLIPVisionModel hold the tower only; the text tower of the base stays."""
    base = {"vision_model.w": torch.zeros(4), "text_model.w": torch.ones(4)}
    paths = save_three(tmp_path, base, {"vision_model.w": torch.ones(4)}, {"vision_model.w": torch.full((4,), 3.0)})
    merge_checkpoints(paths[0], paths[1:], "average", tmp_path / "m.safetensors", on_mismatch="skip")
    merged = load_file(tmp_path / "m.safetensors")
    assert merged["vision_model.w"].tolist() == [2.0] * 4
    assert merged["text_model.w"].tolist() == [1.0] * 4


def test_another_base_is_refused(tmp_path):
    import hashlib

    base, other, one = save_three(tmp_path, {"w": torch.zeros(2)}, {"w": torch.ones(2)}, {"w": torch.ones(2)})
    sha256 = hashlib.sha256(base.read_bytes()).hexdigest()
    save_file({"w": torch.ones(2)}, one, metadata={"base_sha256": sha256})
    merge_checkpoints(base, [one], "average", tmp_path / "m.safetensors")
    with pytest.raises(UserError, match=r"2.safetensors was trained from another one than base=.*1.safetensors"):
        merge_checkpoints(other, [one], "average", tmp_path / "n.safetensors")
    assert not (tmp_path / "n.safetensors").exists()


def test_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    paths = save_three(tmp_path, model(0), model(1), model(2))
    out, folder = tmp_path / "out.safetensors", tmp_path / "folder"
    for target in (out, folder):
        merge_checkpoints(paths[0], paths[1:], "average", target)
    before = {path: path.read_bytes() for path in files_below(tmp_path)}

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    for target in (out, folder):
        with pytest.raises(OSError, match="No space left"):
            merge_checkpoints(paths[0], paths[1:], "magmax", target)
        outcome = command("merge.py", f"base={paths[0]}", f"checkpoints=[{paths[1]}]", f"out={target}")
        assert outcome.code == 1
        assert len(outcome.err.strip().splitlines()) == 1
    assert {path: path.read_bytes() for path in files_below(tmp_path)} == before


def test_gpu_is_asked_for_in_vain(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    paths = save_three(tmp_path, model(0), model(1))
    out = tmp_path / "out.safetensors"
    outcome = command("merge.py", f"base={paths[0]}", f"checkpoints=[{paths[1]}]", f"out={out}", "accelerator=gpu")
    assert outcome.code == 1
    assert "accelerator=gpu needs a GPU" in outcome.err


# Adapters


class Network(torch.nn.Module):
    """What peft needs of a model."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.q_proj, self.v_proj, self.head = torch.nn.Linear(700, 300), torch.nn.Linear(9, 7), torch.nn.Linear(7, 3)

    def forward(self, x):
        return self.head(self.v_proj(x))


@pytest.mark.filterwarnings("ignore")  # peft's own
@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 5}},
        {"modules_to_save": ["head"]},
    ],
)
def test_lora_adapters_are_expanded_as_peft_does(extra, tmp_path):
    from peft import LoraConfig, get_peft_model

    save_file(Network().state_dict(), tmp_path / "base.safetensors")
    full, adapters = [], []
    for seed in (1, 2):
        config = LoraConfig(r=4, lora_alpha=7, target_modules=["q_proj", "v_proj"], **extra)
        tuned = get_peft_model(Network(), config)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in tuned.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        adapters.append(tmp_path / f"adapter{seed}")
        tuned.save_pretrained(adapters[-1])
        full.append(tmp_path / f"full{seed}.safetensors")
        save_file(tuned.merge_and_unload().state_dict(), full[-1])
    merged = []
    for inputs, name in ((full, "a"), (adapters, "b"), (adapters, "c")):
        options = {"threads": 1, "block": 1 << 20} if name == "c" else {}
        merge_checkpoints(tmp_path / "base.safetensors", inputs, "average", tmp_path / f"{name}.safetensors", **options)
        merged.append(load_file(tmp_path / f"{name}.safetensors"))
    for name, expected in merged[0].items():
        torch.testing.assert_close(merged[1][name], expected, rtol=0, atol=1e-6)
        assert torch.equal(merged[1][name], merged[2][name])
    with safe_open(tmp_path / "b.safetensors", framework="pt") as file:
        hashes = [item["xxh3"] for item in json.loads(file.metadata()["inputs"])]
    assert len(set(hashes)) == 3


def write_adapter(folder, tensors, **config):
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        ({}, {"use_dora": True}, "must hold the magnitude of w"),
        ({}, {"peft_type": "IA3"}, "must be a LoRA adapter; it is IA3"),
        ({}, {"r": 8}, "gives w the rank 8, but its factors have 2"),
        ({"base_model.model.v.lora_A.weight": torch.ones(2, 3)}, {}, "both factors of v"),
        ({"base_model.model.u.weight": torch.ones(2, 3)}, {}, "u.weight, which .* does not have"),
        ({"base_model.model.w.lora_A.weight": torch.ones(2, 9)}, {}, r"w.weight is \[5, 3\] in .* is \[5, 9\]"),
        (
            {"base_model.model.w.lora_embedding_A": torch.ones(2, 3)},
            {},
            "both factors of w; it has no lora_embedding_B",
        ),
        ({"base_model.model.v.lora_B.weight": torch.ones(2, 3)}, {}, "has no lora_A"),
        ({"base_model.model.w.lora_B.weight": torch.ones(5, 3)}, {}, r"got \[2, 3\] and \[5, 3\]"),
        ({"base_model.model.w.lora_A.weight": torch.full((2, 3), float("nan"))}, {}, "NaN or infinite"),
        ({"base_model.model.w.weight": torch.ones(6, 3)}, {}, r"w.weight is \[5, 3\] in .* is \[6, 3\]"),
        ({}, {"lora_alpha": None}, "a number for lora_alpha"),
    ],
)
def test_adapters_that_cannot_be_expanded(change, config, message, tmp_path):
    factors = {
        "base_model.model.w.lora_A.weight": torch.ones(2, 3),
        "base_model.model.w.lora_B.weight": torch.ones(5, 2),
    }
    adapter = write_adapter(tmp_path / "a", {**factors, **change}, **config)
    save_file({"w.weight": torch.zeros(5, 3)}, tmp_path / "b.safetensors")
    with pytest.raises(UserError, match=message):
        merge_checkpoints(tmp_path / "b.safetensors", [adapter], "average", tmp_path / "m.safetensors")


def test_adapter_of_attention_by_hand(tmp_path):
    """s · B A = 4/2 · ones(9, 2) ones(2, 3) = 4 for query, key and value; peft adds the output projection's twice."""
    save_file({"a.in_proj_weight": torch.ones(9, 3), "a.out_proj.weight": torch.ones(3, 3)}, tmp_path / "b.safetensors")
    factors = {
        "base_model.model.a.lora_A.weight": torch.ones(2, 3),
        "base_model.model.a.lora_B.weight": torch.ones(9, 2),
        "base_model.model.a.base_layer.out_proj.lora_A.weight": torch.ones(2, 3),
        "base_model.model.a.base_layer.out_proj.lora_B.weight": torch.zeros(3, 2),
    }
    out = tmp_path / "m.safetensors"
    merge_checkpoints(tmp_path / "b.safetensors", [write_adapter(tmp_path / "one", factors)], "average", out)
    merged = load_file(out)
    assert torch.equal(merged["a.in_proj_weight"], torch.full((9, 3), 5.0))
    assert torch.equal(merged["a.out_proj.weight"], torch.ones(3, 3))
    factors["base_model.model.a.base_layer.out_proj.lora_B.weight"] = torch.ones(3, 2)
    adapter = write_adapter(tmp_path / "two", factors)
    with pytest.raises(UserError, match=r"changes a\.out_proj, which peft adds twice; merge it with peft"):
        merge_checkpoints(tmp_path / "b.safetensors", [adapter], "average", out)


def test_adapter_by_hand(tmp_path):
    """s · B A = 4/2 · ones(5, 2) ones(2, 3) = 4 everywhere."""
    factors = {
        "base_model.model.w.lora_A.weight": torch.ones(2, 3),
        "base_model.model.w.lora_B.weight": torch.ones(5, 2),
    }
    adapter = write_adapter(tmp_path / "a", factors)
    save_file({"w.weight": torch.ones(5, 3), "b": torch.ones(2)}, tmp_path / "b.safetensors")
    merge_checkpoints(tmp_path / "b.safetensors", [adapter], "magmax", tmp_path / "m.safetensors", scale=1.0)
    merged = load_file(tmp_path / "m.safetensors")
    assert (merged["w.weight"] == 5).all()
    assert (merged["b"] == 1).all()
    # The record tells adapters apart that differ in their scale alone.
    other = write_adapter(tmp_path / "other", factors, lora_alpha=8)
    merge_checkpoints(tmp_path / "b.safetensors", [other], "magmax", tmp_path / "n.safetensors", scale=1.0)
    recorded = [json.loads(read_metadata(tmp_path / name)["inputs"]) for name in ("m.safetensors", "n.safetensors")]
    assert recorded[0][0] == recorded[1][0]
    assert recorded[0][1]["xxh3"] != recorded[1][1]["xxh3"]
