"""Checkpoints of every kind: dtypes, shapes, prefixes, shards, containers. Each merge is right, or ends in one line."""

from __future__ import annotations

import json
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mergestream.merging import merge_checkpoints
from mergestream.runtime.errors import UserError

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))
FLOATS = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
NAMES = [
    *("w", "a.weight", "a.bias", "b.weight", "visual.c", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"),
    *("model.embed_tokens.weight", "lm_head.weight", "é.w", "a..b", "w b", "0"),
]
PREFIXES = ["", "module.", "model.", "_orig_mod.module.", "x.y."]
CONTAINERS = [
    *("file.safetensors", "file.pt", "old.pt", "nested.ckpt", "nested.pth", "parameters.bin"),
    *("folder", "folder of bin", "shards", "shards of bin", "stale shards", "index"),
]
SPECIAL = ["none"] * 20 + ["inf", "-inf", "nan", "huge", "subnormal"]
DAMAGE = ["none"] * 40 + ["cut", "junk", "empty", "missing shard", "text"]
shapes = st.lists(st.sampled_from([0, 1, 2, 2, 3, 3, 4, 5]), max_size=3).map(tuple)


@dataclass
class Entry:
    """One tensor of the base, and how its twins in the checkpoints differ."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    special: str
    everywhere: bool  # whether the special value is in every file
    layout: str


@st.composite
def entries(draw):
    kinds = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5, unique=True))
    floating = st.sampled_from([torch.float32, *FLOATS])
    dtypes = st.one_of(floating, floating, floating, floating, st.sampled_from([*INTEGERS, torch.complex64]))
    one = st.builds(
        Entry,
        dtypes,
        shapes,
        st.sampled_from(SPECIAL),
        st.booleans(),
        st.sampled_from(["plain", "plain", "transposed", "strided", "expanded"]),
    )
    return {name: draw(one) for name in kinds}


@dataclass
class File:
    """How a checkpoint is kept."""

    container: str
    prefix: str
    dtype: torch.dtype | None  # of its floating-point tensors; None for that of the base
    tie: bool  # whether tensors of one shape share memory
    damage: str
    change: str  # how its names and shapes differ from those of the base


files = st.builds(
    File,
    st.sampled_from(CONTAINERS),
    st.sampled_from([*[""] * 9, *PREFIXES]),
    st.one_of(st.none(), st.none(), st.sampled_from(FLOATS)),
    st.integers(0, 5).map(lambda x: x == 5),
    st.sampled_from(DAMAGE),
    st.sampled_from(["none"] * 20 + ["more", "fewer", "shape", "integers"]),
)


def tensors(layout, file, seed):
    """The state dict of one checkpoint."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, entry in layout.items():
        shape = entry.shape
        if file.change == "shape" and seed and not state:
            shape = (*shape, 2)
        values = torch.randn(shape, generator=generator)
        if entry.special != "none" and values.numel() and (entry.everywhere or seed == 1):
            values.view(-1)[-1] = {"huge": 3e38, "subnormal": 1e-42}.get(entry.special) or float(entry.special)
        if entry.dtype.is_floating_point or entry.dtype.is_complex:
            values = values.to(entry.dtype if file.dtype is None else file.dtype)
        else:
            values = (torch.ones(shape) * (1 + (seed if file.change == "integers" else 0))).to(entry.dtype)
        if entry.layout == "transposed" and values.dim() > 1:
            values = values.transpose(0, -1).contiguous().transpose(0, -1)
        elif entry.layout == "strided" and values.dim():
            values = torch.stack([values, values], -1)[..., 0]
        elif entry.layout == "expanded" and values.dim() and values.shape[0] and not values.dtype.is_complex:
            values = values[:1].expand(values.shape)
        state[file.prefix + name] = values
    if file.tie:
        first = next(iter(state.values()))
        same = [n for n, t in state.items() if t.shape == first.shape and t.dtype == first.dtype]
        state |= dict.fromkeys(same, first)
    if file.change == "more" and seed:
        state[file.prefix + "more.head"] = torch.zeros(2)
    if file.change == "fewer" and seed and len(state) > 1:
        state.pop(next(iter(state)))
    return state


def save(folder, file, state):
    """Write a checkpoint; return its path."""
    kind, dense = file.container, {name: tensor.clone().contiguous() for name, tensor in state.items()}
    folder.mkdir()
    if "." in kind:
        path = folder / kind
        if path.suffix == ".safetensors":
            save_file(dense, path)
        elif kind.startswith("nested"):
            torch.save({"epoch": 1, "state_dict": state, "lr": [0.1]}, path)
        elif kind == "parameters.bin" and all(t.is_floating_point() for t in state.values()):
            torch.save({name: torch.nn.Parameter(tensor) for name, tensor in state.items()}, path)
        else:
            torch.save(state, path, _use_new_zipfile_serialization=kind != "old.pt")
        return path
    suffix = ".bin" if "bin" in kind else ".safetensors"
    write = torch.save if suffix == ".bin" else save_file
    content = state if suffix == ".bin" else dense
    if kind.startswith("folder"):
        write(content, folder / f"model{suffix}")
        return folder
    names = list(state)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    mapping = {}
    for number, part in enumerate(parts):
        shard = f"model-{number}{suffix}"
        stale = {n: torch.zeros_like(content[n]) for n in names if n not in part} if kind == "stale shards" else {}
        write({**{n: content[n] for n in part}, **stale}, folder / shard)
        mapping |= dict.fromkeys(part, shard)
    index = folder / f"model{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": mapping}))
    return index if kind == "index" else folder


def damage(path, how):
    """Damage the files of a checkpoint."""
    weights = [path] if path.is_file() else sorted(p for p in path.iterdir() if not p.name.endswith(".json"))
    last = weights[-1]
    if how == "cut":
        last.write_bytes(last.read_bytes()[:-3])
    elif how == "junk":
        last.write_bytes(b"\xff" * 20 + last.read_bytes()[20:])
    elif how == "empty":
        last.write_bytes(b"")
    elif how == "missing shard":
        last.unlink()
    elif how == "text":
        last.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


def without_prefix(state, file):
    return {name.removeprefix(file.prefix): tensor for name, tensor in state.items()}


def merge(paths, out, strategy, **options):
    """Merge; return the message of a refusal, or nothing."""
    try:
        merge_checkpoints(paths[0], paths[1:], strategy, out, say=lambda _: None, threads=1, **options)
    except UserError as error:
        return str(error)
    return ""


def check(merged, base, tuned, scale, strategy, dtype):
    """Compare with a plain loop over single elements, in float64."""
    assert merged.keys() == base.keys()
    for name, first in base.items():
        result, kind = merged[name], first.dtype
        statistic = name.endswith(("running_mean", "running_var"))
        if not kind.is_floating_point:
            assert torch.equal(result, first), name
            continue
        assert result.dtype == (dtype if dtype is not None and not statistic else kind), name
        assert result.shape == first.shape
        total = first.double().flatten().tolist()
        start = list(total)
        share = 1 / len(tuned) if strategy == "average" or statistic else 1.0
        for state in tuned:
            for i, value in enumerate(state[name].double().flatten().tolist()):
                if not (math.isinf(value) and value == start[i]):
                    total[i] += (1.0 if statistic else scale) * share * (value - start[i])
        expected = torch.tensor(total, dtype=torch.float64).view(first.shape)
        largest = max([1.0, *(abs(x) for x in start if math.isfinite(x))])
        spacing = torch.finfo(result.dtype).eps if result.dtype.itemsize < 4 else 2e-6
        atol = spacing * largest + 1e-6
        far = (result.double() - expected).abs() > atol + 2 * spacing * expected.abs()
        assert not bool((far & (result.double() != expected)).any()), (name, result, expected)
        assert not result.double().isnan().any(), (name, result, expected)


def test_any_checkpoint():
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        entries(),
        st.lists(files, min_size=2, max_size=3),
        st.sampled_from(["average", "task_arithmetic"]),
        st.sampled_from([0.5, 1.0, -0.3]),
        st.sampled_from([None, None, "bfloat16", "float32"]),
        st.booleans(),
    )
    def check_one(layout, kinds, strategy, scale, dtype, to_folder):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            states = [tensors(layout, file, seed) for seed, file in enumerate(kinds)]
            paths = [save(folder / f"in {seed}", file, states[seed]) for seed, file in enumerate(kinds)]
            for path, file in zip(paths, kinds, strict=True):
                damage(path, file.damage)
            out = folder / "out" / ("merged" if to_folder else "merged.safetensors")
            before = sorted(folder.rglob("*"))
            refusal = merge(paths, out, strategy, scale=scale, dtype=dtype)
            if refusal:
                assert "\n" not in refusal
                assert sorted(folder.rglob("*")) == before, refusal
                return
            found = [out] if out.is_file() else out.glob("*.safetensors")
            merged = {k: v for path in found for k, v in load_file(path).items()}
            plain = [without_prefix(state, file) for state, file in zip(states, kinds, strict=True)]
            wanted = None if dtype is None else getattr(torch, dtype)
            check(without_prefix(merged, kinds[0]), plain[0], plain[1:], scale, strategy, wanted)
            assert not list(folder.rglob(".partial*"))

    check_one()


def test_the_fuzz_finds_errors():
    """What it compares with is not what the merge computes."""
    state = {"w": torch.ones(3)}
    with pytest.raises(AssertionError):
        check(state, state, [{"w": torch.zeros(3)}], 1.0, "average", None)
