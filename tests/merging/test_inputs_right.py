"""Inputs that are unusual, and right: shapes, types, values, paths and sizes."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from helpers import command
from safetensors.torch import load_file, save_file
from weights import DATA_FREE, QUICK, draw, merge, refused, write

from mergestream.merging.tensors import Entry, TensorFile, TensorWriter
from mergestream.merging.vectors import TaskVectors
from mergestream.runtime.errors import UserError

# Each makes the tensor of a seed; "w" of the same files is a plain matrix.
TENSORS = {
    "scalar": lambda seed: draw(seed=seed),
    "one element": lambda seed: draw(1, seed=seed),
    "zero-size": lambda seed: draw(0, 4, seed=seed),
    "zero-size, half": lambda seed: draw(3, 0, seed=seed).half(),
    "transposed": lambda seed: draw(4, 3, seed=seed).T,
    "every second column": lambda seed: draw(4, 6, seed=seed)[:, ::2],
    "expanded": lambda seed: draw(4, 1, seed=seed).expand(4, 3),
    "parameter": lambda seed: torch.nn.Parameter(draw(4, 3, seed=seed)),
    "five dimensions": lambda seed: draw(2, 1, 3, 1, 2, seed=seed),
    "half": lambda seed: draw(5, seed=seed).half(),
    "bfloat16": lambda seed: draw(5, seed=seed).bfloat16(),
    "bool": lambda seed: torch.tensor([True, False, True]),
    "bool scalar": lambda seed: torch.tensor(True),
    "counter": lambda seed: torch.tensor(7 + seed),
    "zero-size integers": lambda seed: torch.zeros(0, dtype=torch.int32),
    "a single column of several": lambda seed: draw(1, 2, seed=seed).half()[:, 0],
    "subnormal": lambda seed: draw(5, seed=seed) * 1e-40,
    "largest": lambda seed: torch.full((3,), torch.finfo(torch.float32).max),
    "equal everywhere": lambda seed: draw(5),
}


@pytest.mark.parametrize("kind", ["safetensors", "pt", "old pt"])
@pytest.mark.parametrize("case", TENSORS)
def test_tensors_of_any_kind(case, kind, tmp_path):
    states = [{"w": draw(3, 4, seed=seed), "x": TENSORS[case](seed)} for seed in range(3)]
    if kind == "safetensors":
        paths = write(tmp_path, *states)
    else:
        paths = [tmp_path / f"{seed}.pt" for seed in range(3)]
        for path, state in zip(paths, states, strict=True):
            torch.save(state, path, _use_new_zipfile_serialization=kind == "pt")
    merged, said = merge(tmp_path, *paths, scale=0.5)
    assert not said
    for name, first in states[0].items():
        expected = first.detach().double()
        if first.dtype.is_floating_point:
            for state in states[1:]:
                expected = expected + 0.5 / 2 * (state[name].detach().double() - first.detach().double())
        assert merged[name].dtype == first.dtype
        assert merged[name].shape == first.shape
        torch.testing.assert_close(merged[name], expected.to(first.dtype), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float16])
def test_values_beyond_the_type_of_the_base_are_refused(dtype, tmp_path):
    largest = torch.finfo(dtype).max
    states = [{"w": torch.tensor([largest / 2, 0.0]).to(dtype)}, {"w": torch.tensor([largest, 1.0]).to(dtype)}]
    paths = write(tmp_path, *states)
    merged, _ = merge(tmp_path, *paths, scale=1.0)
    assert merged["w"].tolist() == [largest, 1.0]
    (tmp_path / "out.safetensors").unlink()
    refused(tmp_path, f"w has values that {dtype} cannot hold, with lambda=2", *paths, scale=2.0)


@pytest.mark.parametrize("name", DATA_FREE)
@pytest.mark.parametrize("among_others", [False, True])
def test_task_vectors_of_zeros(among_others, name, tmp_path):
    """A checkpoint that is the base, alone or beside others."""
    state = {"w": draw(6, 5), "b": draw(5)}
    others = [{"w": draw(6, 5, seed=1), "b": draw(5)}] * among_others
    merged, _ = merge(tmp_path, *write(tmp_path, state, state, *others), strategy=name, **QUICK.get(name, {}))
    assert torch.equal(merged["b"], state["b"])
    assert merged["w"].isfinite().all()
    assert torch.equal(merged["w"], state["w"]) or among_others


PLACES = ["a b, c", "[a]={b}", "it's (a)", 'say "a": $HOME', "ü#\\~"]


@pytest.mark.parametrize("place", PLACES)
def test_quoted_paths(place, tmp_path):
    folder = tmp_path / place
    folder.mkdir()
    paths = write(folder, {"w": draw(3)}, {"w": draw(3, seed=1)})

    def quoted(path):
        return "'" + str(path).replace("'", "\\'") + "'"

    words = [f"base={quoted(paths[0])}", f"checkpoints=[{quoted(paths[1])}]", f"out={quoted(folder / 'new' / 'm')}"]
    outcome = command("merge.py", "strategy=average", *words)
    assert outcome.code == 0, outcome.err
    (found,) = (folder / "new" / "m").glob("*.safetensors")
    torch.testing.assert_close(load_file(found)["w"], draw(3, seed=1))


@pytest.mark.parametrize("typed", ["'1000'", '"1000"', "./1000"])
def test_names_that_look_like_numbers_can_be_quoted(typed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("1000", "2000"):
        (tmp_path / name).mkdir()
        save_file({"w": draw(3, seed=int(name))}, tmp_path / name / "model.safetensors")
    words = [f"base={typed}", f"checkpoints=[{typed.replace('1', '2')}]", f"out={typed.replace('1', '3')}"]
    outcome = command("merge.py", "strategy=average", *words)
    assert outcome.code == 0, outcome.err
    torch.testing.assert_close(load_file(tmp_path / "3000" / "model.safetensors")["w"], draw(3, seed=2000))


# Sizes beyond 2³¹ elements: files with holes, of which only the last elements are read

HUGE = 2**31 + 2**21 + 1000


def huge(path, last, shape=(HUGE,)):
    """A file of 8 GiB that takes a few blocks on the disk, with zeros up to the last elements."""
    layout = {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 4 * HUGE]}
    header = json.dumps({"w": layout}).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + 4 * HUGE)
        file.seek(-4 * len(last), os.SEEK_END)
        file.write(last.numpy().tobytes())
    return path


def test_tensors_beyond_two_to_the_31_elements(tmp_path):
    paths = [huge(tmp_path / f"{seed}.safetensors", draw(5, seed=seed)) for seed in range(3)]
    with TaskVectors(paths[0], paths[1:]) as vectors:
        blocks = vectors.blocks(["w"])
        assert blocks[-1].start > 2**31
        assert sum(block.size for block in blocks) == HUGE
        ((base, taus),) = vectors.map(lambda _, base, taus: (base.clone(), taus.clone()), blocks[-1:])
        (found,) = vectors.map_rows(
            lambda block, _, rows: rows.at(torch.tensor([0, block.size - 1])), vectors.blocks(["w"], streamed=True)[-1:]
        )
    torch.testing.assert_close(base[-5:], draw(5))
    for seed in (1, 2):
        torch.testing.assert_close(taus[seed - 1, -5:], draw(5, seed=seed) - draw(5))
        assert not taus[seed - 1, :-5].any()
        torch.testing.assert_close(found[seed - 1], torch.tensor([0.0, draw(5, seed=seed)[-1] - draw(5)[-1]]))


def test_outputs_beyond_two_to_the_31_elements(tmp_path):
    entries = {"w": Entry(torch.float32, (HUGE,)), "x": Entry(torch.float32, (2,))}
    with TensorWriter(tmp_path / "m.safetensors", entries, {}) as writer:
        writer.write("w", HUGE - 5, draw(5))
        writer.write("x", 0, draw(2, seed=1))
    file = TensorFile(tmp_path / "m.safetensors")
    for name, start, expected in (("w", HUGE - 6, torch.cat([torch.zeros(1), draw(5)])), ("x", 0, draw(2, seed=1))):
        found = torch.empty(len(expected))
        file.read(name, start, memoryview(found.numpy()).cast("B"))
        assert torch.equal(found, expected)
    file.close()


def test_a_header_that_promises_too_much_is_refused(tmp_path):
    path = huge(tmp_path / "0.safetensors", draw(5))
    os.truncate(path, 1000)
    with pytest.raises(UserError, match="w lies outside of the file"):
        TensorFile(path)


# Files that are no checkpoints, and sparse tensors of every kind


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
@pytest.mark.parametrize("which", [0, 1])
def test_pointers_of_git_lfs_are_named(which, suffix, tmp_path):
    paths = write(tmp_path, {"w": draw(3)}, {"w": draw(3, seed=1)})
    paths[which] = tmp_path / f"model.{suffix}"
    paths[which].write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    refused(tmp_path, f"model.{suffix} must hold tensors; it is a pointer of Git LFS", *paths)


def test_what_torch_cannot_read_back_is_one_line(tmp_path):
    """The old format cannot hold 8-bit floats, but torch.save does not say so."""
    state = {"w": draw(3).to(torch.float8_e5m2)}
    torch.save(state, tmp_path / "tuned.pt", _use_new_zipfile_serialization=False)
    message = "tuned.pt must be a valid .safetensors or tensors-only .pt file"
    refused(tmp_path, message, *write(tmp_path, {"w": draw(3)}), tmp_path / "tuned.pt")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", ["coo", "csr"])
@pytest.mark.parametrize("nested", [False, True])
def test_sparse_tensors_are_refused(nested, layout, tmp_path):
    tensor = torch.eye(3).to_sparse() if layout == "coo" else torch.eye(3).to_sparse_csr()
    torch.save({"state_dict": {"w": tensor}} if nested else {"w": tensor}, tmp_path / "tuned.pt")
    refused(tmp_path, r"w is sparse. Save w.to_dense\(\)", *write(tmp_path, {"w": torch.eye(3)}), tmp_path / "tuned.pt")
