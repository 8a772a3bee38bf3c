"""Checkpoints that other tools made: each is merged right, or refused in one line before anything is written."""

from __future__ import annotations

import pytest
import torch
from helpers import command
from safetensors.torch import load_file, save_file

from mergestream.merging import merge_checkpoints
from mergestream.runtime.errors import UserError


def write(folder, *states):
    """Write one .safetensors file for each state dict; return their paths."""
    paths = [folder / f"{i}.safetensors" for i in range(len(states))]
    for path, state in zip(paths, states, strict=True):
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return paths


def merge(folder, base, *checkpoints, strategy="average", **options):
    """Return the merged tensors of files, and what the merge says."""
    said = []
    out = folder / "out.safetensors"
    merge_checkpoints(base, checkpoints, strategy, out, say=said.append, **options)
    return load_file(out), said


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def refused(folder, message, base, *checkpoints, **options):
    """Check that a merge fails with one line and writes nothing."""
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError, match=message) as error:
        merge(folder, base, *checkpoints, **options)
    assert "\n" not in str(error.value)
    assert sorted(folder.rglob("*")) == before


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
