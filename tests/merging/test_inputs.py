"""Checkpoints that other tools made: each is merged right, or refused in one line before anything is written."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import command
from safetensors.torch import load_file, save_file
from weights import draw, merge, refused, write

from mergestream.merging import merge_checkpoints
from mergestream.runtime.errors import UserError

# Which names vote


def towers(seed):
    """A vision-language model: 500 parameters of a frozen image tower, and 1,000 of a language model."""
    frozen = {"visual.w": draw(500)}
    return {**frozen, "model.w": draw(1000, seed=seed)}


def trimmed_mean(base, states, density):
    """Return TIES of flat parameters, float64 [n], by Algorithm 1 of Yadav et al. 2023."""
    taus = torch.stack([state - base for state in states]).double()
    for tau in taus:
        limit = tau.abs().kthvalue(len(tau) - int(density * len(tau))).values
        tau[tau.abs() < limit] = 0
    sign = taus.sum(0).sign()
    agree = (taus * sign) > 0
    return (taus * agree).sum(0) / agree.sum(0).clamp(min=1)


@pytest.mark.parametrize("typed", [False, True])
def test_ties_ranks_the_names_of_all_files(typed, tmp_path):
    states = [towers(seed) for seed in range(3)]
    paths = write(tmp_path, *states)
    if typed:
        words = [f"base={paths[0]}", f"checkpoints=[{paths[1]},{paths[2]}]", f"out={tmp_path}/out.safetensors"]
        outcome = command("merge.py", "strategy=ties", "lambda=1", *words)
        assert outcome.code == 0, outcome.err
        merged = load_file(tmp_path / "out.safetensors")
    else:
        merged, _ = merge(tmp_path, *paths, strategy="ties", scale=1.0)
    flat = [torch.cat([state["model.w"], state["visual.w"]]) for state in states]
    expected = flat[0] + trimmed_mean(flat[0].double(), [f.double() for f in flat[1:]], 0.2)
    found = torch.cat([merged["model.w"], merged["visual.w"]])
    torch.testing.assert_close(found, expected.float(), rtol=0, atol=1e-6)
    assert int((merged["model.w"] != states[0]["model.w"]).sum()) < 600


def test_ties_says_that_it_trims_nothing(tmp_path):
    paths = write(tmp_path, *(towers(seed) for seed in range(2)))
    merged, said = merge(tmp_path, *paths, strategy="ties", scale=1.0, scope="encoder")
    assert torch.allclose(merged["model.w"], load_file(paths[1])["model.w"], atol=1e-6)
    assert "strategy.density=0.2 trims nothing of task vector 1" in said[0]


# Adapters, against the weights that peft merges


class Network(torch.nn.Module):
    """A Linear and a Conv1D layer of each shape, an embedding and a head."""

    def __init__(self):
        from transformers.pytorch_utils import Conv1D

        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(11, 6)
        self.linear, self.square = torch.nn.Linear(6, 9), torch.nn.Linear(6, 6)
        self.c_fc, self.c_proj = Conv1D(9, 6), Conv1D(6, 6)
        self.head = torch.nn.Linear(6, 11)

    def forward(self, x):
        return self.head(self.c_proj(self.square(self.embed(x))))


LAYERS = ["linear", "square", "c_fc", "c_proj"]
RENAME = {"lora_A.weight": "lora_A.default.weight", "lora_B.weight": "lora_B.default.weight"}
ADAPTERS = {
    "Linear and Conv1D": {},
    "Conv1D alone": {"target_modules": ["c_fc", "c_proj"]},
    "Linear alone": {"target_modules": ["linear", "square"]},
    "flag for all": {"fan_in_fan_out": True},
    "rank-stabilised": {"use_rslora": True},
    "patterns": {"rank_pattern": {"linear": 2}, "alpha_pattern": {"c_fc": 5}},
    "saved modules": {"modules_to_save": ["head"]},
    "magnitudes": {"use_dora": True},
    "magnitudes of Linear": {"use_dora": True, "target_modules": ["linear", "square"]},
    "magnitudes of an embedding": {"use_dora": True, "target_modules": ["embed"]},
    "embedding": {"target_modules": ["embed", "linear"]},
    "biases of layers": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "bias of B": {"lora_bias": True, "target_modules": ["linear"]},
    "tokens": {"target_modules": ["linear"], "trainable_token_indices": {"embed": [2, 7]}},
    "gaussian start": {"init_lora_weights": "gaussian"},
    "orthogonal start": {"init_lora_weights": "orthogonal", "r": 2, "target_modules": ["linear", "square"]},
}


def saved_adapter(folder, seed=1, **settings):
    """Save an adapter with random values; return its folder and the weights that peft merges."""
    from peft import LoraConfig, get_peft_model

    tuned = get_peft_model(Network(), LoraConfig(**{"r": 4, "lora_alpha": 7, "target_modules": LAYERS, **settings}))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    tuned.save_pretrained(folder)
    return folder, tuned.merge_and_unload().state_dict()


def saved_base(folder, model_type="gpt2"):
    folder.mkdir()
    save_file(Network().state_dict(), folder / "model.safetensors")
    if model_type:
        (folder / "config.json").write_text(json.dumps({"model_type": model_type, "_name_or_path": "me/base"}))
    return folder


@pytest.mark.filterwarnings("ignore")  # peft's own
@pytest.mark.parametrize("case", ADAPTERS)
def test_adapters_are_what_peft_merges(case, tmp_path):
    adapter, expected = saved_adapter(tmp_path / "adapter", **ADAPTERS[case])
    merged, said = merge(tmp_path, saved_base(tmp_path / "base"), adapter)
    assert not said
    assert merged.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(
            merged[name], tensor, rtol=0, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", ["magnitudes", "Linear and Conv1D"])
def test_names_of_adapters_and_stored_base_layers_are_read(case, tmp_path):
    """A leftover adapter name; and a base layer in the file, which the factors add to."""
    base, (adapter, expected) = saved_base(tmp_path / "base"), saved_adapter(tmp_path / "adapter", **ADAPTERS[case])
    tensors = load_file(adapter / "adapter_model.safetensors")
    for old, new in RENAME.items():
        tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    tensors["base_model.model.linear.base_layer.weight"] = Network().linear.weight.detach() + 1
    plain = Network().state_dict()
    if case == "Linear and Conv1D":
        expected["linear.weight"] = expected["linear.weight"] + 1
    else:  # peft computes the norm of the stored layer
        B, A = (tensors[f"base_model.model.linear.lora_{letter}.default.weight"] for letter in "BA")
        changed = plain["linear.weight"] + 1 + 7 / 4 * B @ A
        magnitude = tensors["base_model.model.linear.lora_magnitude_vector"]
        expected["linear.weight"] = magnitude[:, None] / changed.norm(dim=1, keepdim=True) * changed
    save_file(tensors, adapter / "adapter_model.safetensors")
    merged, _ = merge(tmp_path, base, adapter)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name], tensor, rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa, which changes the base"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "init_lora_weights=olora"),
        ({"init_lora_weights": "corda"}, "init_lora_weights=corda"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights=loftq"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights=lora_ga"),
        ({"target_parameters": ["experts"]}, "without target_parameters"),
        ({"peft_type": "LOHA"}, "it is LOHA"),
    ],
)
def test_adapters_that_start_elsewhere_are_refused(change, message, tmp_path):
    base, (adapter, _) = saved_base(tmp_path / "base"), saved_adapter(tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **change}))
    refused(tmp_path, message, base, adapter)


@pytest.mark.filterwarnings("ignore")
def test_a_square_layer_of_an_unknown_class_is_refused(tmp_path):
    adapter, expected = saved_adapter(tmp_path / "adapter", target_modules=["c_proj"])
    refused(tmp_path, "c_proj.weight is square", saved_base(tmp_path / "base", model_type=None), adapter)
    adapter, expected = saved_adapter(tmp_path / "linear", target_modules=["square"])
    merged, _ = merge(tmp_path, tmp_path / "base", adapter)
    torch.testing.assert_close(merged["square.weight"], expected["square.weight"], rtol=0, atol=2e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("named", "says"), [("me/base", False), ("/models/base/", False), ("you/other", True)])
def test_an_adapter_of_another_base_is_said(named, says, tmp_path):
    base, (adapter, _) = saved_base(tmp_path / "base"), saved_adapter(tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": named}))
    _, said = merge(tmp_path, base, adapter)
    assert ["trained on you/other" in text for text in said] == [True] * says


# Quantised weights, and shards


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.int64, torch.bool])
def test_integers_that_differ_are_refused(dtype, tmp_path):
    states = [{"w": draw(3), "codes": torch.tensor([0, 1, 1 - i]).to(dtype)} for i in range(2)]
    refused(tmp_path, "codes, torch.* differs between", *write(tmp_path, *states))
    refused(tmp_path, "codes, torch.* differs between", *write(tmp_path, *states), on_mismatch="skip")
    states[1]["codes"] = states[0]["codes"]
    merged, _ = merge(tmp_path, *write(tmp_path, *states))
    assert torch.equal(merged["codes"], states[0]["codes"])


@pytest.mark.parametrize("which", [0, 1])
def test_a_quantised_config_is_refused(which, tmp_path):
    paths = []
    for i in range(2):
        paths.append(tmp_path / f"m{i}")
        paths[-1].mkdir()
        save_file({"w": draw(3, seed=i)}, paths[-1] / "model.safetensors")
    (paths[which] / "config.json").write_text('{"quantization_config": {"quant_method": "gptq"}}')
    refused(tmp_path, f"m{which} is quantised by gptq", *paths)


def test_a_name_is_read_from_the_shard_of_the_index(tmp_path):
    """Stale copies in other shards do not count, and neither do names that the index lacks."""
    paths = []
    for i in range(2):
        folder = tmp_path / f"m{i}"
        folder.mkdir()
        paths.append(folder)
        save_file({"a": torch.full((2,), 1.0 + i), "b": torch.full((2,), 9.0)}, folder / "m-1.safetensors")
        save_file(
            {"a": torch.full((2,), 9.0), "b": torch.full((2,), 2.0 + i), "c": draw(2)}, folder / "m-2.safetensors"
        )
        index = {"weight_map": {"a": "m-1.safetensors", "b": "m-2.safetensors"}}
        (folder / "m.safetensors.index.json").write_text(json.dumps(index))
    merged, _ = merge(tmp_path, *paths)
    assert {name: tensor.tolist() for name, tensor in merged.items()} == {"a": [2.0, 2.0], "b": [3.0, 3.0]}
    merge_checkpoints(paths[0], [paths[1]], "average", tmp_path / "folder")
    index = json.loads((tmp_path / "folder" / "m.safetensors.index.json").read_text())["weight_map"]
    assert index == {"a": "m-1.safetensors", "b": "m-2.safetensors"}


# Batch normalisation


def normalised(seed):
    """A layer of batch normalisation after some steps."""
    torch.manual_seed(seed)
    layer = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.BatchNorm1d(4))
    for step in range(1 + seed):
        layer(draw(8, 5, seed=step) * (1 + seed))
    return layer.state_dict()


@pytest.mark.parametrize("bn", ["average", "base"])
@pytest.mark.parametrize(("strategy", "scale"), [("task_arithmetic", 2.0), ("ties", 1.0), ("magmax", 0.5)])
def test_running_statistics_are_no_weights(strategy, scale, bn, tmp_path):
    states = [normalised(seed) for seed in range(4)]
    merged, _ = merge(tmp_path, *write(tmp_path, *states), strategy=strategy, scale=scale, bn=bn)
    for name in ("1.running_mean", "1.running_var"):
        tasks = torch.stack([state[name].double() for state in states[1:]])
        expected = tasks.mean(0) if bn == "average" else states[0][name].double()
        torch.testing.assert_close(merged[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert merged["1.num_batches_tracked"] == states[0]["1.num_batches_tracked"]
    assert merged["1.num_batches_tracked"].dtype == torch.int64
    if strategy == "task_arithmetic":
        expected = states[0]["1.weight"] + 2 * sum(state["1.weight"] - states[0]["1.weight"] for state in states[1:])
        torch.testing.assert_close(merged["1.weight"], expected)


def test_statistics_of_a_running_merge_are_those_of_the_merge(tmp_path):
    """Also where earlier versions saved the counters as floats."""
    from mergestream import strategies
    from mergestream.merging.accumulate import RunningMerge
    from mergestream.merging.encoder import apply
    from mergestream.merging.engine import merged_task_vector

    states = [normalised(seed) for seed in range(4)]
    for state in states[1:]:
        state["1.num_batches_tracked"] = state["1.num_batches_tracked"].float()
    base, *tasks = write(tmp_path, *states)
    bound = strategies.get("magmax").bind({})
    running = RunningMerge(tmp_path / "running.safetensors", bound)
    for index, task in enumerate(tasks):
        running.add(index, base, task)
    whole, continued = merged_task_vector(base, tasks, bound)[0], running.task_vector()[0]
    assert all(torch.equal(whole[name], continued[name]) for name in whole)
    merged, _ = merge(tmp_path, base, *tasks, strategy="magmax")
    theta = apply(states[0], whole, 0.5)
    assert theta.keys() == merged.keys()
    assert all(torch.equal(theta[name], merged[name]) for name in merged)


# Types and names

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_floating_types_may_differ(dtype, suffix, tmp_path):
    base, tuned = {"w": draw(50)}, {"w": draw(50, seed=1).to(dtype)}
    path = tmp_path / f"tuned.{suffix}"
    save_file(tuned, path) if suffix == "safetensors" else torch.save(tuned, path)
    merged, _ = merge(tmp_path, *write(tmp_path, base), path, scale=0.5)
    expected = base["w"].double() + (tuned["w"].double() - base["w"].double()) / 2
    torch.testing.assert_close(merged["w"], expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", FLOATS[2:])
def test_the_output_has_the_type_of_the_base(dtype, tmp_path):
    base, tuned = {"w": draw(50).to(dtype)}, {"w": draw(50, seed=1)}
    merged, _ = merge(tmp_path, *write(tmp_path, base, tuned), scale=0.5)
    expected = base["w"].double() + (tuned["w"].double() - base["w"].double()) / 2
    assert torch.equal(merged["w"].float(), expected.float().to(dtype).float())


def test_other_types_are_named(tmp_path):
    paths = write(tmp_path, {"w": draw(3)}, {"w": torch.zeros(3, dtype=torch.complex64)})
    refused(tmp_path, "1.safetensors: w is C64, which a merge cannot read", *paths)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "module._orig_mod.", "net."])
@pytest.mark.parametrize("which", [0, 1])
def test_a_prefix_of_all_names_is_stripped_and_said(prefix, which, tmp_path):
    states = [{"a.w": draw(4, seed=i), "b": draw(2, seed=i)} for i in range(2)]
    prefixed = [{prefix * (i == which) + name: t for name, t in state.items()} for i, state in enumerate(states)]
    merged, said = merge(tmp_path, *write(tmp_path, *prefixed))
    assert merged.keys() == prefixed[0].keys()
    for name, tensor in states[1].items():
        torch.testing.assert_close(merged[prefix * (which == 0) + name], tensor)
    assert len(said) == 1
    assert prefix in said[0]


def test_a_dropped_head_is_listed(tmp_path):
    paths = write(tmp_path, {"w": draw(3)}, {"w": draw(3, seed=1), "head.weight": draw(2)})
    refused(tmp_path, "0.safetensors has no head.weight", *paths)
    _, said = merge(tmp_path, *paths, on_mismatch="skip")
    assert "1.safetensors (on_mismatch=skip): head.weight" in said[0]


# Where the output goes


@pytest.mark.parametrize("which", ["base", "checkpoint", "link"])
def test_an_output_that_is_an_input_is_refused(which, tmp_path):
    states = [{"w": draw(3, seed=i)} for i in range(2)]
    paths = write(tmp_path, *states)
    out = paths[which == "checkpoint"]
    if which == "link":
        out = tmp_path / "link.safetensors"
        out.symlink_to(paths[0])
    before = [path.read_bytes() for path in paths]
    words = [f"base={paths[0]}", f"checkpoints=[{paths[1]}]", f"out={out}", "strategy=average"]
    outcome = command("merge.py", *words)
    assert outcome.code == 1
    assert "out must not replace an input" in outcome.err
    assert "overwrite=true" in outcome.err
    assert [path.read_bytes() for path in paths] == before
    assert command("merge.py", *words, "overwrite=true").code == 0
    torch.testing.assert_close(load_file(out)["w"], states[1]["w"])


def test_an_output_in_the_folder_of_an_input_is_refused(tmp_path):
    paths = []
    for i in range(2):
        paths.append(tmp_path / f"m{i}")
        paths[-1].mkdir()
        save_file({"w": draw(3, seed=i)}, paths[-1] / "model.safetensors")
    with pytest.raises(UserError, match="out must not replace an input"):
        merge_checkpoints(paths[0], paths[1:], "average", paths[1] / "merged.safetensors")


@pytest.mark.parametrize("word", ["checkpoints=[1000]", "base=1000", "out=1e3", "checkpoints=[true]"])
def test_paths_that_look_like_numbers_are_told_to_quote(word, tmp_path):
    words = {"base": "base=a.safetensors", "checkpoints": "checkpoints=[b]", "out": f"out={tmp_path}/o.safetensors"}
    outcome = command("merge.py", *{**words, word.partition("=")[0]: word}.values())
    assert outcome.code == 1
    assert "must be the path of a file" in outcome.err
    assert "Write ./ before it, or quote it" in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1


# Kinds of files


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
@pytest.mark.parametrize("kind", ["pickled model", "TorchScript", "Lightning"])
def test_files_that_hold_more_than_tensors_say_how_to_convert_them(kind, tmp_path):
    model, path = torch.nn.Linear(3, 2), tmp_path / "tuned.pt"
    if kind == "TorchScript":
        torch.jit.script(model).save(path)
    else:
        lightning = {"state_dict": model.state_dict(), "callbacks": draw}
        content = model if kind == "pickled model" else lightning
        torch.save(content, path)
    with pytest.raises(UserError, match="TorchScript archive" if kind == "TorchScript" else "a pickled model") as error:
        merge(tmp_path, *write(tmp_path, model.state_dict()), path)
    assert "\n" not in str(error.value)
    exec(str(error.value).partition("convert it: ")[2], {})  # what the message tells to type
    merged, _ = merge(tmp_path, *write(tmp_path, torch.nn.Linear(3, 2).state_dict()), tmp_path / "tuned.weights.pt")
    torch.testing.assert_close(merged["weight"], model.state_dict()["weight"])


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("folder", [False, True])
def test_nested_state_dicts_are_read(key, folder, tmp_path):
    (tmp_path / "run").mkdir()
    tuned = {"w": draw(3, seed=1)}
    content = {"epoch": 3, "pytorch-lightning_version": "2.5", "optimizer_states": [{"lr": 0.1}], key: tuned}
    torch.save(content, tmp_path / "run" / "last.ckpt")
    path = tmp_path / "run" if folder else tmp_path / "run" / "last.ckpt"
    merged, _ = merge(tmp_path, *write(tmp_path, {"w": draw(3)}), path)
    torch.testing.assert_close(merged["w"], tuned["w"])


@pytest.mark.filterwarnings("ignore:Validating sparse")  # of torch
def test_a_sparse_tensor_is_refused(tmp_path):
    torch.save({"w": torch.eye(3).to_sparse()}, tmp_path / "tuned.pt")
    refused(tmp_path, "w is sparse", *write(tmp_path, {"w": torch.eye(3)}), tmp_path / "tuned.pt")
