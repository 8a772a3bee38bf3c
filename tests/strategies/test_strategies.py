"""Each strategy against numbers worked out by hand, and against the published ones."""

from __future__ import annotations

import pytest
import torch
from helpers import config, golden
from references import REFERENCES
from safetensors.torch import load_file, save_file
from weights import QUICK

from mergestream import strategies
from mergestream.merging import merge_checkpoints
from mergestream.merging.engine import merged_task_vector
from mergestream.runtime.errors import UserError
from mergestream.strategies.average import average
from mergestream.strategies.magmax import magmax
from mergestream.strategies.random_mix import random_mix
from mergestream.strategies.task_arithmetic import task_arithmetic
from mergestream.strategies.ties import Ballot, ties

A = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
B = torch.tensor([[-1.0, 1.0, -0.25], [0.0, -4.0, -3.0]])
C = torch.tensor([[0.5, 2.0, 0.125], [-0.5, 2.0, 2.0]])
ABC = torch.stack([A, B, C])


def test_magmax_by_hand():
    # |1| = |−1| and |−2| = |2|: ties go to the later task.
    assert magmax(ABC).tolist() == [[-1.0, 2.0, 0.5], [-0.5, -4.0, -3.0]]


def test_average_by_hand():
    assert average(ABC)[0].tolist() == pytest.approx([0.5 / 3, 1 / 3, 0.375 / 3])
    assert average(ABC[:2]).tolist() == [[0.0, -0.5, 0.125], [0.0, -0.5, -2.0]]


def test_task_arithmetic_by_hand():
    assert task_arithmetic(ABC).tolist() == [[0.5, 1.0, 0.375], [-0.5, 1.0, -2.0]]


def test_ties_by_hand():
    # Trimmed at 1: A = [1 −2 0 | 0 3 −1], B = [−1 1 0 | 0 −4 −3], C = [0 2 0 | 0 2 2]
    # Mass: [0 1 0 | 0 1 −2]; zero mass takes the majority, here positive.
    def merged(majority):
        ballot, limits = Ballot(frozenset("w"), majority=majority), {"w": [1.0, 1.0, 1.0]}
        tau = ties(ABC.flatten(1).clone(), name="w", start=0, thresholds=limits, ballot=ballot)
        assert ballot.votes == 2 - 1  # +1.5 and +2.5 against −2
        assert ballot.undecided["w", 0].tolist() == [0]
        return tau.view(2, 3).tolist()

    assert merged(1.0) == [[1.0, 1.5, 0.0], [0.0, 2.5, -2.0]]
    assert merged(-1.0) == [[-1.0, 1.5, 0.0], [0.0, 2.5, -2.0]]


def test_random_mix_takes_whole_values_evenly():
    taus = torch.arange(3.0).view(3, 1, 1).expand(3, 100, 300)
    mixed = random_mix(taus, name="w", seed=1)
    counts = torch.bincount(mixed.flatten().long(), minlength=3)
    # 30,000 draws: 10,000 each, standard deviation 82.
    assert counts.sub(10_000).abs().max() < 5 * 82
    assert torch.equal(mixed, random_mix(taus, name="w", seed=1))
    for other in (random_mix(taus, name="v", seed=1), random_mix(taus, name="w", seed=2)):
        # Independent draws agree in a third of the places: 10,000, standard deviation 82.
        assert abs(int((other == mixed).sum()) - 10_000) < 5 * 82
    neighbours = (mixed.flatten()[1:] == mixed.flatten()[:-1]).sum()
    assert abs(int(neighbours) - 10_000) < 5 * 82


@pytest.mark.parametrize(
    ("expected", "strategy", "options"),
    [
        ("magmax_0.5", "magmax", {"scale": 0.5}),
        ("magmax_1.0", "magmax", {"scale": 1.0}),
        ("average", "average", {}),
        ("task_arithmetic_0.3", "task_arithmetic", {"scale": 0.3}),
        ("ties_full_0.55", "ties", {"scale": 0.55, "scope": "clip"}),
        ("ties_visual_0.55", "ties", {"scale": 0.55, "scope": "encoder"}),
    ],
)
def test_published_merges(expected, strategy, options, tmp_path):
    groups = golden("merge.safetensors")
    for name in ("base", *(f"task{t}" for t in range(4))):
        save_file(groups[name], tmp_path / f"{name}.safetensors")
    out = tmp_path / "out.safetensors"
    checkpoints = [tmp_path / f"task{t}.safetensors" for t in range(4)]
    merge_checkpoints(tmp_path / "base.safetensors", checkpoints, strategy, out, **options)
    merged = load_file(out)
    for name, tensor in groups[f"expected/{expected}"].items():
        if name.startswith("visual.") or "visual" not in expected:
            torch.testing.assert_close(merged[name], tensor, rtol=0, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("scope", ["clip", "encoder"])
def test_ties_on_the_tower_alone_equals_ties_on_the_whole_clip(scope, tmp_path):
    groups = golden("merge.safetensors")
    total = sum(tensor.numel() for tensor in groups["base"].values())
    for name in ("base", *(f"task{t}" for t in range(4))):
        tower = {key: tensor for key, tensor in groups[name].items() if key.startswith("visual.")}
        save_file(tower, tmp_path / f"{name}.safetensors")
    paths = [tmp_path / f"{name}.safetensors" for name in ("base", "task0", "task1", "task2", "task3", "out")]
    merge_checkpoints(paths[0], paths[1:5], "ties", paths[5], scale=0.55, scope=scope, clip_parameters=total)
    expected = groups["expected/ties_full_0.55" if scope == "clip" else "expected/ties_visual_0.55"]
    for name, tensor in load_file(paths[5]).items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-7)


STREAMING = [name for name in strategies.names() if strategies.get(name).streams and not strategies.get(name).survey]


@pytest.mark.parametrize("name", STREAMING)
def test_a_stack_in_memory_gives_the_bits_of_files(name, tmp_path):
    """A strategy that streams takes a stack too; equal magnitudes make MagMax look up single elements."""
    generator = torch.Generator().manual_seed(0)
    taus = torch.randn(3, 20, 30, generator=generator).mul(2).round().div(2)
    paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
    for path, tau in zip(paths, [torch.zeros(20, 30), *taus], strict=True):
        save_file({"w": tau.contiguous()}, path)
    bound = strategies.get(name).bind(QUICK.get(name, {}))
    before = taus.clone()
    assert torch.equal(bound.strategy(taus, **bound.options), merged_task_vector(paths[0], paths[1:], bound)[0]["w"])
    assert torch.equal(taus, before)


@pytest.mark.parametrize("name", strategies.names())
def test_yaml_states_the_defaults_of_the_function(name):
    strategy, node = strategies.get(name), config("merge", f"strategy={name}").strategy
    assert node.scale == strategy.scale
    options = {key: value for key, value in node.items() if key not in ("_target_", "_partial_", "scale")}
    defaults = strategy.defaults()
    assert {key: defaults[key] if value is None else value for key, value in options.items()} == defaults


def test_unknown_names_and_options_are_refused():
    with pytest.raises(UserError, match=r"must be one of average, breadcrumbs, .*; got strategy=magmin"):
        strategies.get("magmin")
    with pytest.raises(UserError, match=r"takes strategy.density, strategy.scope; got strategy.top=1"):
        strategies.get("ties").bind({"top": 1})


@pytest.mark.parametrize("name", ["tsv", "iso_c", "knots", "opcm"])
def test_low_rank_updates_do_not_depend_on_rounding_noise(name, tmp_path):
    """Rotating all task vectors rotates the merge, also where most singular values are zero; knots rotates the rows."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    taus = [random(40, 2) @ random(2, 30) for _ in range(3)]
    left = torch.linalg.qr(random(40, 40)).Q
    right = torch.linalg.qr(random(30, 30)).Q if name != "knots" else torch.eye(30, dtype=torch.float64)
    results = []
    for turned in ([left @ tau @ right for tau in taus], taus):
        paths = [tmp_path / f"{i}.safetensors" for i in range(4)]
        for path, tau in zip(paths, [torch.zeros(40, 30), *turned], strict=True):
            save_file({"w": tau.float().contiguous()}, path)
        merge_checkpoints(paths[0], paths[1:], name, tmp_path / "m.safetensors", scale=1.0)
        results.append(load_file(tmp_path / "m.safetensors")["w"].double())
    back = left.T @ results[0] @ right.T
    assert (back - results[1]).norm() < 1e-3 * results[1].norm()


def test_opcm_keeps_a_task_that_comes_after_nothing(tmp_path):
    tau = torch.arange(16.0).view(4, 4)
    for index, value in enumerate((torch.zeros(4, 4), torch.zeros(4, 4), tau)):
        save_file({"w": value}, tmp_path / f"{index}.safetensors")
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    merge_checkpoints(paths[0], paths[1:], "opcm", tmp_path / "m.safetensors")
    # M = τ_2, and its length becomes the mean of 0 and ‖τ_2‖.
    torch.testing.assert_close(load_file(tmp_path / "m.safetensors")["w"], tau / 2)


def test_wudi_on_a_wide_weight_is_the_same(tmp_path):
    """1 × 9 has more columns than three tasks have rows; its gradient is then made task by task."""
    taus = torch.randn(3, 1, 9, generator=torch.Generator().manual_seed(0))
    expected = REFERENCES["wudi"]({"w": taus.double()}, steps=20, lr=0.01)["w"]
    merged = strategies.get("wudi")(taus, steps=20, lr=0.01)
    torch.testing.assert_close(merged.double(), expected, rtol=0, atol=1e-4)
