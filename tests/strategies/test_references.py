"""Every strategy, through files and the engine, against a plain reference in float64."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from helpers import shipped
from hypothesis import given, settings
from hypothesis import strategies as st
from references import REFERENCES, curvature_of
from safetensors.torch import load_file, save_file
from weights import QUICK

from mergestream import strategies
from mergestream.merging import merge_checkpoints

OPTIONS = {
    "weighted_average": [{}, {"weights": [3.0, 1.0, 0.5, 2.0]}],
    "ema": [{}, {"decay": 0.0}, {"decay": 0.9}],
    "random_mix": [{}, {"seed": 7}],
    "dare": [{}, {"density": 0.2, "seed": 1}],
    "dare_ties": [{}, {"density": 1.0}],
    "breadcrumbs": [{}, {"density": 0.3, "outliers": 0.2}, {"density": 1.0, "outliers": 0}],
    "della": [{}, {"density": 0.3, "window": 0.5}],
    "ties": [{}, {"density": 1.0}, {"density": 0.5, "scope": "tensor"}, {"scope": "encoder"}],
    "consensus": [{}, {"threshold": [0.25, 1.0, 0.5, 2.0]}, {"tasks": 0}, {"threshold": 0.5, "tasks": 9}],
    "iso_cts": [{}, {"common": 0.5}, {"common": 1.0}],
    "knots": [{}, {"density": 1.0}],
    "core_space": [
        {},
        {"rule": "ties", "density": 0.5},
        {"rule": "magmax", "rank": 2},
        {"rule": "tsv", "rank": 1},
        {"rule": "average", "rank": 2},
        {"rule": "task_arithmetic"},
    ],
    "opcm": [{}, {"alpha": 0.9}, {"alpha": 0.0}],
    "fisher": [{}, {"floor": 0.1}],
    "regmean": [{}, {"shrink": 0.5}],
    "wudi": [{}, {"steps": 3, "lr": 0.01}],
    "dop": [
        {"steps": 20, "lr": 0.01},
        {"steps": 20, "lr": 0.01, "variant": "corrected", "decay": 0.5, "energy": 0.8},
        {"steps": 20, "lr": 0.01, "solver": "adam", "alpha": 0.3},
        {"solver": "closed"},
        {"solver": "closed", "variant": "corrected", "alpha": 0.5},
        {"solver": "closed", "energy": 0.5, "alpha": 1.0},
    ],
    "nufilt": [
        {"layers": ["a", "b"], "null_rank": 3, "task_rank": 2, "rank": 4},
        {"layers": ["visual.b"], "null_rank": 1, "task_rank": 7, "rank": 10, "lr": 0.01},
        {"layers": [""], "null_rank": 0, "task_rank": 0, "rank": 0, "variant": "corrected"},
        {"layers": [""], "null_rank": 4, "task_rank": 2, "rank": 2, "variant": "corrected", "seed": 1},
    ],
}


def test_every_strategy_has_a_reference():
    assert sorted(REFERENCES) == shipped("strategy")


def write_curvature(folder, taus, strategy):
    if kind := strategies.get(strategy).needs:
        found = curvature_of(taus, strategy)
        for i in range(len(next(iter(taus.values())))):
            save_file({n: c[i].float() for n, c in found.items()}, folder / str(i + 1) / f"{kind}.safetensors")


def check(folder, name, shapes, tasks, seed, coarse, options, scale=0.7):
    generator = torch.Generator().manual_seed(seed)
    base = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    taus = {}
    for n, shape in shapes.items():
        noise = torch.randn(tasks, *shape, generator=generator)
        taus[n] = (noise * 4).round() / 4 if coarse else noise
    if coarse:  # exactly representable everywhere, so that equal magnitudes and zero sums are common
        base = {n: b.round() for n, b in base.items()}
    paths = [folder / str(i) / "encoder.safetensors" for i in range(tasks + 1)]
    for path in paths:
        path.parent.mkdir()
    save_file(base, paths[0])
    for i, path in enumerate(paths[1:]):
        save_file({n: base[n] + taus[n][i] for n in shapes}, path)
    write_curvature(folder, taus, name)
    said: list[str] = []
    out = folder / "out.safetensors"
    merge_checkpoints(paths[0], paths[1:], name, out, scale=scale, say=said.append, **options)
    assert all("strategy.null_rank=" in line for line in said)
    # The subtraction is float32's, as in the engine: it decides which magnitudes are equal.
    exact = {n: torch.stack([(load_file(p)[n] - base[n]).double() for p in paths[1:]]) for n in shapes}
    expected, merged = REFERENCES[name](exact, **options), load_file(out)
    for n in shapes:
        torch.testing.assert_close(merged[n].double(), base[n].double() + scale * expected[n], rtol=0, atol=2e-4)


@pytest.mark.parametrize(("name", "options"), [(n, o) for n in REFERENCES for o in OPTIONS.get(n, [{}])])
@pytest.mark.parametrize("coarse", [False, True])
def test_options(name, options, coarse, tmp_path):
    if coarse and name in ("tsv", "iso_cts", "knots", "core_space"):
        coarse = False  # equal singular values have no unique vectors
    shapes = {"visual.a": (12, 9), "visual.b": (7, 10), "bias": (11,), "conv": (3, 2, 2, 2)}
    check(tmp_path, name, shapes, 4, 1, coarse, options)


@pytest.mark.parametrize("name", REFERENCES)
@settings(deadline=None, max_examples=12)
@given(data=st.data())
def test_random_shapes(name, data):
    sides = st.integers(1, 6)
    shapes = data.draw(
        st.dictionaries(
            st.sampled_from(["a", "b", "c"]),
            st.one_of(st.tuples(sides), st.tuples(sides, sides), st.tuples(sides, sides, sides)),
            min_size=1,
        )
    )
    tasks, seed = data.draw(st.integers(1, 5)), data.draw(st.integers(0, 2**31))
    options = {} if name == "wudi" else QUICK.get(name, {})
    if name == "nufilt":  # it needs a matrix
        shapes["d"] = (4, 3)
    with tempfile.TemporaryDirectory() as folder:
        check(Path(folder), name, shapes, tasks, seed, False, options)
