"""Weights by task, depth and name, which go with any strategy: through files and the engine."""

from __future__ import annotations

import pytest
import torch
from helpers import shipped
from references import REFERENCES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weights import DATA_FREE

from mergestream import strategies
from mergestream.merging import merge_checkpoints
from mergestream.runtime.errors import UserError
from mergestream.strategies import calibrations
from mergestream.strategies.adjustments import Adjustments

SHAPES = {f"blocks.{layer}.{part}": (6, 5) for layer in range(3) for part in ("attn.w", "mlp.w")}
SHAPES |= {"visual.conv": (3, 2, 2), "norm.bias": (7,)}
MERGED_ALIKE = [
    name for name in shipped("strategy") if name in {*DATA_FREE} - {"weighted_average", "wudi", "dop", "nufilt"}
]


@pytest.fixture
def paths(tmp_path):
    """θ₀ and three checkpoints."""
    generator = torch.Generator().manual_seed(0)
    found = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path in found:
        save_file({name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}, path)
    return found


def merged(paths, name, scale=0.7, **adjustments):
    """θ − θ₀ of a merge, over λ."""
    out = paths[0].with_name("m.safetensors")
    merge_checkpoints(paths[0], paths[1:], name, out, scale=scale, adjustments=Adjustments(**adjustments))
    base = load_file(paths[0])
    return {key: (tensor.double() - base[key].double()) / scale for key, tensor in load_file(out).items()}


def exact(paths):
    base, *thetas = (load_file(path) for path in paths)
    return {name: torch.stack([(theta[name] - base[name]).double() for theta in thetas]) for name in base}


@pytest.mark.parametrize("name", MERGED_ALIKE)
def test_weights_multiply_the_task_vectors_before_the_strategy(name, paths):
    """The float32 product decides which magnitudes are equal, so it is the reference's too."""
    weights = [2.0, -0.5, 0.25]  # powers of two: the products are exact
    scaled = {
        key: taus * torch.tensor(weights).double().view(-1, *[1] * (taus.dim() - 1))
        for key, taus in exact(paths).items()
    }
    expected, found = REFERENCES[name](scaled), merged(paths, name, weights=weights)
    for key in SHAPES:
        torch.testing.assert_close(found[key], expected[key], rtol=0, atol=3e-4)


def test_weights_of_one_change_nothing_and_a_weight_of_zero_leaves_a_task_out(paths):
    for name in ("magmax", "average", "ties"):
        one, plain = merged(paths, name, weights=[1, 1, 1]), merged(paths, name)
        assert all(torch.equal(one[key], plain[key]) for key in plain)
    without, alone = (
        merged(paths, "task_arithmetic", weights=[0, 1, 0]),
        merged([paths[0], paths[2]], "task_arithmetic"),
    )
    assert all(torch.equal(without[key], alone[key]) for key in alone)


def test_equal_magnitudes_go_to_the_later_task_among_weighted_ones(tmp_path):
    found = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, values in zip(found, ([0.0, 0.0], [2.0, 1.0], [-1.0, 3.0]), strict=True):
        save_file({"w": torch.tensor(values)}, path)
    assert merged(found, "magmax", scale=1, weights=[0.5, 1.0])["w"].tolist() == [-1.0, 3.0]
    assert merged(found, "magmax", scale=1, weights=[3.0, 1.0])["w"].tolist() == [6.0, 3.0]


def test_running_statistics_are_not_weighted(tmp_path):
    found = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path, value in zip(found, (1.0, 3.0, 5.0), strict=True):
        save_file({"w": torch.full((2,), value), "bn.running_var": torch.full((2,), value)}, path)
    tau = merged(found, "average", scale=1, weights=[4, 0])
    assert tau["bn.running_var"].tolist() == [3, 3]  # (2 + 4)/2
    assert tau["w"].tolist() == [4, 4]  # (4·2 + 0·4)/2


@pytest.mark.parametrize("name", ["magmax", "ties", "tsv"])
def test_depth_multiplies_the_merge_along_the_network(name, paths):
    plain, found = merged(paths, name), merged(paths, name, depth=[1, 0.5])
    for key in SHAPES:
        factor = {"blocks.0": 1, "blocks.1": 0.75, "blocks.2": 0.5, "norm.bia": 0.5}.get(key[:8], 1)
        torch.testing.assert_close(found[key], factor * plain[key], rtol=0, atol=1e-6)
    equal = merged(paths, name, depth=[0.5, 0.5, 0.5])
    half = merged(paths, name, scale=0.35)
    assert all(torch.allclose(0.7 * equal[key], 0.35 * half[key], rtol=0, atol=1e-6) for key in SHAPES)


def test_excluded_weights_stay_and_the_strategy_does_not_see_them(paths, tmp_path):
    kept = ["blocks.0.attn.w", "blocks.2.attn.w", "visual.conv"]
    small = [tmp_path / f"small-{i}.safetensors" for i in range(4)]
    for path, smaller in zip(paths, small, strict=True):
        save_file({name: tensor for name, tensor in load_file(path).items() if name in kept}, smaller)
    for name in ("ties", "slerp", "opcm", "magmax"):  # the first three look at all weights together
        alone = merged(small, name)
        found = merged(paths, name, include=["*attn*", "visual.*"], exclude=["blocks.1.*"])
        assert all(torch.equal(found[key], alone[key]) for key in kept)
        assert not any(found[key].any() for key in SHAPES.keys() - set(kept))


def test_depth_counts_the_blocks_that_are_left_out(paths):
    found = merged(paths, "average", depth=[1, 0], exclude=["blocks.2.*"])
    plain = merged(paths, "average")
    torch.testing.assert_close(found["blocks.1.mlp.w"], 0.5 * plain["blocks.1.mlp.w"], rtol=0, atol=1e-6)
    lines = calibrations.get("lines").bind({"beta": 1.0})
    left = merged(paths, "task_arithmetic", calibration=lines, include=["blocks.1.*", "visual.*"])
    total = merged(paths, "task_arithmetic")
    torch.testing.assert_close(left["blocks.1.mlp.w"], (1 / 3 + 0.5) * total["blocks.1.mlp.w"], rtol=0, atol=1e-5)


def test_tied_weights_are_left_out_together(tmp_path):
    found = [tmp_path / f"{i}.pt" for i in range(3)]
    for path, value in zip(found, (0.0, 1.0, 3.0), strict=True):
        tied = torch.full((2, 2), value)
        torch.save({"embed.weight": tied, "lm_head.weight": tied, "w": torch.full((2,), value)}, path)
    for pattern in ("embed*", "lm_head*"):
        merge_checkpoints(
            found[0], found[1:], "average", tmp_path / "m.safetensors", adjustments=Adjustments(exclude=[pattern])
        )
        tensors = load_file(tmp_path / "m.safetensors")
        assert [float(tensors[name].flatten()[0]) for name in ("embed.weight", "lm_head.weight", "w")] == [0, 0, 2]


def test_the_metadata_hold_what_was_typed(paths):
    merged(paths, "average", weights=[1.0, 0.5, 2.0], depth=[1.0, 0.5], include=["*.w"], exclude=["*mlp*"])
    with safe_open(paths[0].with_name("m.safetensors"), framework="pt") as file:
        metadata = file.metadata()
    found = {key: metadata[key] for key in ("weights", "depth", "include", "exclude")}
    assert found == {"weights": "[1.0, 0.5, 2.0]", "depth": "[1.0, 0.5]", "include": '["*.w"]', "exclude": '["*mlp*"]'}
    assert "calibration" not in metadata


def test_folders_of_merges_differ_where_merges_do():
    magmax = strategies.get("magmax").bind({})
    assert magmax.folder(0.5) == magmax.adjusted(Adjustments()).folder(0.5) == "magmax-0.5"
    svc, lines = calibrations.get("svc"), calibrations.get("lines")
    long = [f"*transformer.resblocks.{layer}.*" for layer in range(12)]
    names = [
        magmax.adjusted(Adjustments(**adjustments)).folder(1.0)
        for adjustments in (
            {},
            {"calibration": svc.bind({})},
            {"calibration": svc.bind({"alpha": 1})},
            {"calibration": lines.bind({})},
            {"calibration": lines.bind({"beta": 0.5})},
            {"weights": [1.0, 0.5]},
            {"depth": [1.0, 0.5]},
            {"include": ["*attn*"]},
            {"exclude": ["*attn*"]},
            {"exclude": ["a/b"]},
            {"include": long},
            {"include": long[:-1]},
        )
    ]
    assert len(set(names)) == len(names)
    assert names[1:7] == [
        "magmax-calibration=svc-1",
        "magmax-calibration=svc-calibration.alpha=1-1",
        "magmax-calibration=lines-1",
        "magmax-calibration=lines-calibration.beta=0.5-1",
        "magmax-weights=[1.0,0.5]-1",
        "magmax-depth=[1.0,0.5]-1",
    ]
    assert all(len(name) < 60 and not set(name) & set("/*") for name in names)


@pytest.mark.parametrize(
    ("adjustments", "message"),
    [
        ({"weights": [1, 2]}, r"weights must be 3 numbers, one for each task; got 2, weights=\[1, 2\]"),
        ({"include": ["attn"]}, r"include must match names of weights, such as blocks.*; got include=\[attn\], which"),
        ({"exclude": ["*w", "nope*"]}, r"got exclude=\[nope\*\], which matches none"),
        (
            {"include": ["*attn*"], "exclude": ["*.w"]},
            r"must leave a weight to merge; got include=\[\*attn\*\] and exclude",
        ),
        ({"exclude": ["*"]}, r"got include=null and exclude=\[\*\], which leave none"),
    ],
)
def test_wrong_adjustments_are_refused_before_anything_is_written(adjustments, message, paths):
    with pytest.raises(UserError, match=message):
        merged(paths, "average", **adjustments)
    assert not paths[0].with_name("m.safetensors").exists()


def test_a_strategy_with_weights_of_its_own_keeps_them(paths):
    with pytest.raises(
        UserError, match=r"weights is for strategies that have no .* Write strategy.weights=\[1, 2, 3\]"
    ):
        merged(paths, "weighted_average", weights=[1, 2, 3])


def test_depth_needs_blocks(tmp_path):
    for index in range(2):
        save_file({"w": torch.full((2,), float(index))}, tmp_path / f"{index}.safetensors")
    with pytest.raises(UserError, match="depth needs weights in two or more numbered blocks, .* Leave depth out"):
        merged([tmp_path / "0.safetensors", tmp_path / "1.safetensors"], "average", depth=[1, 0])
