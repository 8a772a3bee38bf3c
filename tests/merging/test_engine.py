"""The merge engine: bits that do not depend on how it reads, memory, exact thresholds, and rules of every strategy."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from helpers import shipped
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weights import DATA_FREE, QUICK

from mergestream import strategies
from mergestream.merging import merge_checkpoints
from mergestream.merging.tensors import TensorFile
from mergestream.merging.vectors import CHUNK, TaskVectors
from mergestream.runtime.errors import UserError
from mergestream.strategies import _ranks

SHAPES = {
    "visual.a": (300, 1333),
    "visual.b": (7,),
    "c": (),
    "visual.empty": (0, 4),
}  # several blocks, a few, one, none


def write(folder, tasks, dtype=torch.float32, coarse=False, shapes=SHAPES):
    """Write θ₀ and `tasks` checkpoints; coarse values make equal magnitudes common."""
    generator = torch.Generator().manual_seed(0)
    paths = []
    for index in range(tasks + 1):
        tensors = {}
        for name, shape in shapes.items():
            values = torch.randn(shape, generator=generator)
            tensors[name] = ((values * 2).round() / 2 if coarse else values).to(dtype)
        tensors["steps"] = torch.tensor([index])
        paths.append(folder / f"{index}.safetensors")
        save_file(tensors, paths[-1])
    return paths


@pytest.mark.parametrize("strategy", DATA_FREE)
def test_block_size_and_threads_change_no_bit(strategy, tmp_path):
    # A whole weight is one block of any size; decomposing a large one takes seconds.
    shapes = {**SHAPES, "visual.a": (30, 133)} if strategies.get(strategy).whole else SHAPES
    base, *rest = write(tmp_path, 3, shapes=shapes)
    assert same_everywhere(strategy, base, rest, tmp_path) == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", ["magmax", "average", "random_mix", "ties", "slerp"])
def test_block_size_and_threads_change_no_bit_of_half_precision(strategy, dtype, tmp_path):
    base, *rest = write(tmp_path, 3, dtype=dtype, coarse=True)
    assert same_everywhere(strategy, base, rest, tmp_path) == dtype


def same_everywhere(strategy, base, rest, folder):
    contents = set()
    for threads, block in ((1, CHUNK), (2, CHUNK), (3, 2 * CHUNK), (1, 8 * CHUNK), (None, None)):
        out = folder / f"out-{threads}-{block}.safetensors"
        merge_checkpoints(base, rest, strategy, out, threads=threads, block=block, **QUICK.get(strategy, {}))
        contents.add(out.read_bytes())
    assert len(contents) == 1
    return load_file(out)["visual.a"].dtype


def test_ties_in_magnitude_go_to_the_later_task_in_bfloat16(tmp_path):
    for name, values in (("0", [0.0, 0.0, 0.0]), ("1", [1.0, -2.0, 3.0]), ("2", [-1.0, 2.0, -2.0])):
        save_file({"w": torch.tensor(values, dtype=torch.bfloat16)}, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    merge_checkpoints(paths[0], paths[1:], "magmax", tmp_path / "m.safetensors", scale=1.0)
    assert load_file(tmp_path / "m.safetensors")["w"].tolist() == [-1.0, 2.0, 3.0]


@pytest.mark.parametrize("collected", [1 << 20, 40])  # 40 needs the sample, the histogram and a second bracket
@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 3000), seed=st.integers(0, 2**31), coarse=st.booleans())
def test_thresholds_are_exact(collected, count, seed, coarse):
    generator = torch.Generator().manual_seed(seed)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(_ranks, "COLLECTED", collected)
        patch.setattr(_ranks, "STRIDE", 500)
        paths = []
        for index in range(3):
            values = torch.randn(count, generator=generator) if index else torch.zeros(count)
            paths.append(Path(folder) / f"{index}.safetensors")
            save_file({"w": (values * 2).round() if coarse else values}, paths[-1])
        ks = [1 + seed % count, count, 0]
        with TaskVectors(paths[0], paths[1:]) as vectors:
            found = _ranks.smallest_magnitudes(vectors, ["w"], ks)
        expected = [[load_file(p)["w"].abs().kthvalue(k).values.item() if k else 0.0 for k in ks] for p in paths[1:]]
        assert found == expected


def test_metadata_names_every_input_by_content(tmp_path):
    base, one, two = write(tmp_path, 2, shapes={**SHAPES, "visual.a": (300, 500)})

    def inputs(*checkpoints, strategy="average"):
        merge_checkpoints(base, checkpoints, strategy, tmp_path / "m.safetensors")
        with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
            return json.loads(file.metadata()["inputs"])

    first = inputs(one, two)
    for name in ("magmax", "ties", "opcm", "iso_cts"):  # some of them read twice
        assert inputs(one, two, strategy=name) == first
    assert [item["file"] for item in first] == ["0.safetensors", "1.safetensors", "2.safetensors"]
    assert len({item["xxh3"] for item in first}) == 3
    assert inputs(two, one) == [first[0], first[2], first[1]]
    assert inputs(one) == first[:2]  # the hash depends neither on T nor on the size of a block, which depends on T
    changed = load_file(two)
    changed["visual.a"][200, 5] += 1e-6
    save_file(changed, two)
    assert inputs(one, two)[:2] == first[:2]
    assert inputs(one, two)[2] != first[2]


@pytest.mark.parametrize("name", DATA_FREE)
def test_scale_zero_gives_the_base(name, tmp_path):
    base, *rest = write(tmp_path, 2)
    merge_checkpoints(base, rest, name, tmp_path / "m.safetensors", scale=0, **QUICK.get(name, {}))
    merged, original = load_file(tmp_path / "m.safetensors"), load_file(base)
    assert all(torch.equal(merged[key], original[key]) for key in original)


WITH_ALL = {"ties": {"density": 1}, "dare": {"density": 1}, "dare_ties": {"density": 1}, "knots": {"density": 1}}
WITH_ALL |= {"breadcrumbs": {"density": 1, "outliers": 0}, "della": {"density": 1, "window": 0}}


# Another may scale its result, and nufilt merges some of the weights.
@pytest.mark.parametrize("name", [name for name in shipped("strategy") if name in {*DATA_FREE} - {"nufilt"}])
def test_one_task_is_its_own_merge(name, tmp_path):
    base, one = write(tmp_path, 1)
    merge_checkpoints(base, [one], name, tmp_path / "m.safetensors", scale=0.5, **WITH_ALL.get(name, {}))
    merged, theta_0, theta_1 = (load_file(p) for p in (tmp_path / "m.safetensors", base, one))
    for key in ("visual.a", "visual.b", "c"):
        expected = theta_0[key] + 0.5 * (theta_1[key] - theta_0[key])
        torch.testing.assert_close(merged[key], expected, rtol=0, atol=1e-6)


SYMMETRIC = ["average", "weighted_average", "task_arithmetic", "ties", "sign_max", "breadcrumbs", "model_stock"]
SYMMETRIC += ["iso_c", "wudi", "consensus", "metagpt", "core_space"]


@pytest.mark.parametrize("name", SYMMETRIC)
def test_order_of_the_tasks_does_not_matter(name, tmp_path):
    base, *rest = write(tmp_path, 3)
    outs = []
    for order in (rest, rest[::-1]):
        merge_checkpoints(base, order, name, tmp_path / "m.safetensors", **QUICK.get(name, {}))
        outs.append(load_file(tmp_path / "m.safetensors"))
    for key in set(outs[0]) - {"steps"}:
        torch.testing.assert_close(outs[0][key], outs[1][key], rtol=0, atol=2e-4)


def test_several_scales_in_one_pass_give_the_files_of_single_ones(tmp_path):
    base, *rest = write(tmp_path, 3)
    merge_checkpoints(base, rest, "magmax", tmp_path / "m.safetensors", scale=[0.25, 1])
    for value in (0.25, 1):
        merge_checkpoints(base, rest, "magmax", tmp_path / "alone.safetensors", scale=value)
        assert (tmp_path / f"m-{value}.safetensors").read_bytes() == (tmp_path / "alone.safetensors").read_bytes()


def test_votes_for_the_negative_sign_decide_sums_of_zero(tmp_path):
    """+1 and −1 meet in one parameter, and in a whole tile of another weight; all others are negative."""
    base = {"a": torch.zeros(400), "b": torch.zeros(100_000)}
    save_file(base, tmp_path / "0.safetensors")
    for index, sign in ((1, 1.0), (2, -1.0)):
        a = torch.full((400,), -1.0)
        a[7] = sign
        b = torch.full((100_000,), -1.0)
        b[:1000] = sign
        save_file({"a": a, "b": b}, tmp_path / f"{index}.safetensors")
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    merge_checkpoints(paths[0], paths[1:], "ties", tmp_path / "m.safetensors", scale=1.0, density=1)
    merged = load_file(tmp_path / "m.safetensors")
    assert (merged["a"] == -1).all()
    assert (merged["b"] == -1).all()


def test_the_output_has_the_dtype_that_is_asked_for(tmp_path):
    base, *rest = write(tmp_path, 2)
    merge_checkpoints(base, rest, "average", tmp_path / "m.safetensors")
    merge_checkpoints(base, rest, "average", tmp_path / "half.safetensors", dtype="bfloat16")
    full, half = load_file(tmp_path / "m.safetensors"), load_file(tmp_path / "half.safetensors")
    assert half["steps"].dtype == torch.int64
    assert torch.equal(half["visual.a"], full["visual.a"].bfloat16())


@pytest.mark.parametrize("legacy", [False, True])
def test_pt_files_are_read_where_they_lie(legacy, tmp_path):
    base, one = write(tmp_path, 1)
    tensors = load_file(one)
    tensors["visual.a"] = tensors["visual.a"].T.contiguous().T  # not in one piece, in the order of the file
    torch.save({"state_dict": tensors}, tmp_path / "1.pt", _use_new_zipfile_serialization=not legacy)
    file = TensorFile(tmp_path / "1.pt")
    assert {name for name, entry in file.entries.items() if entry.offset is not None} == (
        set() if legacy else {"visual.b", "c", "steps"}
    )
    file.close()
    for name in ("one", "1"):
        source = one if name == "one" else tmp_path / "1.pt"
        merge_checkpoints(base, [source], "magmax", tmp_path / f"{name}.safetensors")
    first, second = load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "1.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_pt_files_whose_tensors_could_lie_in_several_places(tmp_path):
    """Equal layers, and copies of them that are not part of the state: no offset is guessed."""
    layers = {f"layer{i}": torch.full((64, 64), float(i)) for i in range(5)}
    copies = {name: tensor + 100 for name, tensor in layers.items()}
    torch.save({"optimizer": copies, "state_dict": layers, "state_dict_ema": copies}, tmp_path / "1.pt")
    save_file({name: torch.zeros(64, 64) for name in layers}, tmp_path / "0.safetensors")
    merge_checkpoints(tmp_path / "0.safetensors", [tmp_path / "1.pt"], "average", tmp_path / "m.safetensors")
    assert {name: t[0, 0].item() for name, t in load_file(tmp_path / "m.safetensors").items()} == {
        f"layer{i}": float(i) for i in range(5)
    }


@pytest.mark.parametrize("name", ["ties", "dare", "breadcrumbs", "sign_max"])
def test_a_last_tile_of_one_element(name, tmp_path):
    """torch adds up a single column in another order than several, and than one that lies in one piece."""
    generator = torch.Generator().manual_seed(0)
    paths = [tmp_path / f"{i}.safetensors" for i in range(9)]
    for path in paths:
        save_file({"w": torch.randn(CHUNK + 1, generator=generator)}, path)
    contents = []
    for block in (CHUNK, 2 * CHUNK):
        options = {"density": 1.0} if name in ("ties", "dare") else {}
        merge_checkpoints(paths[0], paths[1:], name, tmp_path / "m.safetensors", block=block, **options)
        contents.append((tmp_path / "m.safetensors").read_bytes())
    assert contents[0] == contents[1]


def test_values_that_the_output_cannot_hold_are_refused(tmp_path):
    for index, value in enumerate((0.0, 1e5)):
        save_file({"w": torch.tensor([value, 2.0])}, tmp_path / f"{index}.safetensors")
    paths, out = [tmp_path / f"{i}.safetensors" for i in range(2)], tmp_path / "m.safetensors"
    with pytest.raises(UserError, match=r"w has values that torch.float16 cannot hold, with lambda=1"):
        merge_checkpoints(paths[0], paths[1:], "average", out, dtype="float16")
    with pytest.raises(UserError, match="lambda=1e"):
        merge_checkpoints(paths[0], paths[1:], "average", out, scale=1e38)
    assert not out.exists()


MEMORY = """
from pathlib import Path
from mergestream.merging import merge_checkpoints
paths = [f"{i}.safetensors" for i in range(13)]
for name in ("average", "magmax", "ties"):
    for count in (1, 3, 12):  # the first imports what it needs
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
        merge_checkpoints(paths[0], paths[1 : count + 1], name, "out.safetensors")
        print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def test_memory_does_not_grow_with_the_tasks(tmp_path):
    """Peak memory of merges of 3 and of 12 checkpoints, 16 MB each, in a process without other garbage."""
    generator = torch.Generator().manual_seed(0)
    for index in range(13):
        save_file({"w": torch.randn(1 << 22, generator=generator)}, tmp_path / f"{index}.safetensors")
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=tmp_path, check=True, capture_output=True, text=True)
    peaks = [int(line) for line in done.stdout.split()]
    for few, many in zip(peaks[1::3], peaks[2::3], strict=True):
        assert many - few < 40_000  # KB; nine more checkpoints are 151 MB


@pytest.mark.parametrize("name", DATA_FREE)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_nan_or_infinite_value_is_refused_with_its_file(name, value, tmp_path):
    base, one, bad = write(tmp_path, 2, shapes={"visual.a": (30, 20), "c": ()})
    tensors = load_file(bad)
    tensors["visual.a"][25, 7] = value
    save_file(tensors, bad)
    with pytest.raises(UserError, match=r"visual.a in .*2.safetensors has NaN or infinite"):
        merge_checkpoints(base, [one, bad], name, tmp_path / "m.safetensors", **QUICK.get(name, {}))
    assert not (tmp_path / "m.safetensors").exists()


@pytest.mark.parametrize("name", ["ties", "breadcrumbs", "opcm", "slerp"])
def test_a_diverged_training_is_refused_with_its_file(name, tmp_path):
    base, one, bad = write(tmp_path, 2)
    tensors = load_file(bad)
    tensors["visual.a"][:] = float("nan")
    save_file(tensors, bad)
    with pytest.raises(UserError, match=r"visual.a in .*2.safetensors has NaN or infinite"):
        merge_checkpoints(base, [one, bad], name, tmp_path / "m.safetensors")
