"""The streaming engine: bits that do not depend on how it reads, exact thresholds, and plain references."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mergestream import strategies
from mergestream.merging import merge_checkpoints
from mergestream.merging.vectors import CHUNK, TaskVectors
from mergestream.strategies.ties import smallest_magnitudes

SHAPES = {"visual.a": (300, 333), "visual.b": (7,), "c": (), "visual.empty": (0, 4)}  # several blocks, a few, one, none


def write(folder, tasks, dtype=torch.float32, seed=0, coarse=False):
    """θ₀ and `tasks` checkpoints; coarse values make equal magnitudes common."""
    generator = torch.Generator().manual_seed(seed)
    paths = []
    for index in range(tasks + 1):
        tensors = {}
        for name, shape in SHAPES.items():
            values = torch.randn(shape, generator=generator)
            tensors[name] = ((values * 2).round() / 2 if coarse else values).to(dtype)
        tensors["steps"] = torch.tensor([index])
        paths.append(folder / f"{index}.safetensors")
        save_file(tensors, paths[-1])
    return paths


def reference(strategy, base, thetas, scale, density=0.2):
    """Whole tensors in float64, element by element where it matters."""
    names = [name for name in base if base[name].is_floating_point()]
    # The subtraction is float32's, as in the engine: it decides which magnitudes are equal.
    taus = {n: torch.stack([(t[n].float() - base[n].float()).double() for t in thetas]) for n in names}
    if strategy == "ties":
        tower = [n for n in names if n.startswith("visual.")]
        flat = torch.cat([taus[n].abs().flatten(1) for n in tower], 1)
        dropped = flat.shape[1] - int(density * flat.shape[1])
        limits = flat.sort(1).values[:, dropped - 1]
        for n in names:
            keep = taus[n].abs() >= limits.view(-1, *[1] * (taus[n].dim() - 1))
            taus[n] = torch.where(keep, taus[n], 0)
        majority = sum(taus[n].sum(0).sign().sum() for n in tower).sign()
    merged = {}
    for n in names:
        t = taus[n]
        if strategy == "magmax":
            best = t[0]
            for tau in t[1:]:
                best = torch.where(tau.abs() >= best.abs(), tau, best)
        elif strategy == "average":
            best = t.mean(0)
        elif strategy == "task_arithmetic":
            best = t.sum(0)
        else:
            sign = t.sum(0).sign()
            sign = torch.where(sign == 0, majority, sign)
            agrees = t * sign > 0
            best = torch.where(agrees, t, 0).sum(0) / agrees.sum(0).clamp(min=1)
        merged[n] = base[n].double() + scale * best
    return merged


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("strategy", ["magmax", "average", "task_arithmetic", "ties"])
def test_against_whole_tensors_in_float64(strategy, coarse, tmp_path):
    base, *rest = write(tmp_path, 5, coarse=coarse)
    out = tmp_path / "out.safetensors"
    merge_checkpoints(base, rest, strategy, out, scale=0.7)
    expected = reference(strategy, load_file(base), [load_file(path) for path in rest], 0.7)
    merged = load_file(out)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged[name].double(), tensor, rtol=0, atol=1e-5)
    assert torch.equal(merged["steps"], torch.tensor([0]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", ["magmax", "average", "task_arithmetic", "random_mix", "ties"])
def test_block_size_and_threads_change_no_bit(strategy, dtype, tmp_path):
    base, *rest = write(tmp_path, 3, dtype, coarse=True)
    contents = set()
    for threads, block in ((1, CHUNK), (2, CHUNK), (3, 2 * CHUNK), (1, 8 * CHUNK)):
        out = tmp_path / f"out-{threads}-{block}.safetensors"
        merge_checkpoints(base, rest, strategy, out, threads=threads, block=block)
        contents.add(out.read_bytes())
        assert load_file(out)["visual.a"].dtype == dtype
    assert len(contents) == 1


def test_ties_in_magnitude_go_to_the_later_task_in_bfloat16(tmp_path):
    for name, values in (("0", [0.0, 0.0, 0.0]), ("1", [1.0, -2.0, 3.0]), ("2", [-1.0, 2.0, -2.0])):
        save_file({"w": torch.tensor(values, dtype=torch.bfloat16)}, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    merge_checkpoints(paths[0], paths[1:], "magmax", tmp_path / "m.safetensors", scale=1.0)
    assert load_file(tmp_path / "m.safetensors")["w"].tolist() == [-1.0, 2.0, 3.0]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 400), st.integers(0, 2**31), st.booleans())
def test_exact_threshold(count, seed, coarse):
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        generator = torch.Generator().manual_seed(seed)
        paths = []
        for index in range(3):
            values = torch.randn(count, generator=generator) if index else torch.zeros(count)
            paths.append(Path(folder) / f"{index}.safetensors")
            save_file({"w": (values * 2).round() if coarse else values}, paths[-1])
        k = 1 + seed % count
        with TaskVectors(paths[0], paths[1:]) as vectors:
            found = smallest_magnitudes(vectors, ["w"], k)
        assert found == [load_file(path)["w"].abs().kthvalue(k).values.item() for path in paths[1:]]


def test_metadata_names_every_input_by_content(tmp_path):
    base, one, two = write(tmp_path, 2)

    def inputs(*checkpoints):
        merge_checkpoints(base, checkpoints, "average", tmp_path / "m.safetensors")
        with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
            return json.loads(file.metadata()["inputs"])

    first = inputs(one, two)
    assert [item["file"] for item in first] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    assert len({item["xxh3"] for item in first}) == 3
    assert inputs(two, one) == [first[0], first[2], first[1]]
    assert inputs(one) == first[:2]  # neither T nor the block that it leads to is part of the hash
    changed = load_file(two)
    changed["visual.a"][200, 5] += 1e-6
    save_file(changed, two)
    assert inputs(one, two)[:2] == first[:2]
    assert inputs(one, two)[2] != first[2]


@pytest.mark.parametrize("name", ["magmax", "average", "task_arithmetic", "random_mix", "ties"])
def test_scale_zero_gives_the_base(name, tmp_path):
    base, *rest = write(tmp_path, 2)
    merge_checkpoints(base, rest, name, tmp_path / "m.safetensors", scale=0)
    merged, original = load_file(tmp_path / "m.safetensors"), load_file(base)
    assert all(torch.equal(merged[key], original[key]) for key in original)


@pytest.mark.parametrize("name", ["average", "task_arithmetic", "ties"])
def test_order_of_the_tasks_does_not_matter(name, tmp_path):
    base, *rest = write(tmp_path, 3)
    outs = []
    for order in (rest, rest[::-1]):
        merge_checkpoints(base, order, name, tmp_path / "m.safetensors")
        outs.append(load_file(tmp_path / "m.safetensors"))
    for key in outs[0]:
        torch.testing.assert_close(outs[0][key], outs[1][key], rtol=0, atol=1e-6)


def test_unknown_strategies_are_listed_by_file():
    assert {"magmax", "average", "task_arithmetic", "random_mix", "ties"} <= set(strategies.names())
