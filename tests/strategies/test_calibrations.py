"""Calibrations of the merged task vector, through files and the engine: references, invariances, numbers by hand."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import torch
from helpers import config, shipped
from references import CALIBRATIONS, REFERENCES
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from weights import DATA_FREE, QUICK

from mergestream import strategies
from mergestream.merging import merge_checkpoints
from mergestream.merging.engine import merged_task_vector
from mergestream.merging.vectors import CHUNK
from mergestream.runtime.errors import UserError
from mergestream.strategies import calibrations
from mergestream.strategies.adjustments import Adjustments
from mergestream.strategies.calibrations.svc import svc

BLOCKS = {
    f"transformer.resblocks.{layer}.{part}": (layer, 3) for layer in range(3) for part in ("attn.weight", "ln.bias")
}
SHAPES = {name: (9, 7) if name.endswith("weight") else (11,) for name in BLOCKS}
SHAPES |= {"conv1.weight": (3, 2, 2, 2), "positional_embedding": (6, 5), "proj": (5, 8), "empty": (0, 4)}
ALPHAS = {"tsv": 1.0, "wudi": 1.0, "iso_cts": 0.2}


def calibrated(name, **options):
    return Adjustments(calibration=calibrations.get(name).bind(options))


LINES = calibrated("lines", beta=0.4)


def write(folder, taus, base=None):
    """Write θ₀ and θ₀ + τ_t; returns their paths."""
    shapes = {name: tau.shape for name, tau in taus[0].items()}
    base = base or {name: torch.zeros(shape) for name, shape in shapes.items()}
    paths = [folder / f"{i}.safetensors" for i in range(len(taus) + 1)]
    for path, tau in zip(paths, [dict.fromkeys(shapes, 0), *taus], strict=True):
        save_file({name: (base[name] + tau[name]).contiguous() for name in shapes}, path)
    return paths


def drawn(tasks, shapes=SHAPES, seed=0, common=0.0):
    """Task vectors of noise, to which all add the same `common` times."""
    generator = torch.Generator().manual_seed(seed)
    shared = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return [
        {name: common * shared[name] + torch.randn(shape, generator=generator) for name, shape in shapes.items()}
        for _ in range(tasks)
    ]


def merged(paths, name, adjustments, options=None, **how):
    """θ − θ₀ of a merge."""
    out = paths[0].with_name("m.safetensors")
    merge_checkpoints(paths[0], paths[1:], name, out, adjustments=adjustments, **(options or {}), **how)
    base = load_file(paths[0])
    return {key: tensor.double() - base[key].double() for key, tensor in load_file(out).items()}


def test_every_calibration_has_a_reference():
    assert sorted([*CALIBRATIONS, "none"]) == shipped("calibration")


@pytest.mark.parametrize("name", [name for name in shipped("strategy") if name in {*DATA_FREE} - {"nufilt"}])
@pytest.mark.parametrize("common", [0.0, 1.0])
def test_calibrated_merges_are_those_of_the_reference(name, common, tmp_path):
    options = {"steps": 5} if name == "wudi" else QUICK.get(name, {})
    taus = drawn(4, seed=1, common=common)
    paths = write(tmp_path, taus, drawn(1, seed=2)[0])
    theta = [load_file(path) for path in paths]
    exact = {
        key: torch.stack([(t[key] - theta[0][key]).double() for t in theta[1:]]) for key in SHAPES if key != "empty"
    }
    expected = REFERENCES[name](exact, **options)
    of_svc = CALIBRATIONS["svc"](expected, exact, ALPHAS.get(name, 0.1), strategies.get(name).scale)
    of_lines = CALIBRATIONS["lines"](expected, exact, 0.4, BLOCKS)
    for adjustments, reference in ((calibrated("svc"), of_svc), (LINES, of_lines)):
        found = merged(paths, name, adjustments, options, scale=0.7)
        for key, tau in reference.items():
            # A direction is as exact as the distance to the next singular value lets it be.
            torch.testing.assert_close(found[key], 0.7 * tau, rtol=2e-3, atol=2e-3, msg=lambda m, k=key: f"{k}: {m}")


def test_svc_by_hand():
    """Three tasks add 1, 2 and 0 times a direction; a direction of one task alone; vectors and tables stay c·τ."""
    u, v, w = torch.eye(4)[:, :1], torch.eye(3)[:1], torch.eye(3)[1:2]
    taus = torch.stack([u @ v, 2 * u @ v, torch.eye(4)[:, 1:2] @ w])
    # M = 3 u vᵀ + u₂ w: s = 3, 1.5, 0 → the published floor; and s = 0, 0, 1.
    found = svc(taus.sum(0), taus, name="w", alpha=0.1, coefficient=1.0)
    expected = 3 * 3 / (3 + 1.5 + 0.1) * u @ v + 3 / (0.1 + 0.1 + 1) * torch.eye(4)[:, 1:2] @ w
    torch.testing.assert_close(found, expected)
    for name, tau in (("b", taus.sum(0).flatten()), ("token_embedding", taus.sum(0)), ("text_projection", taus.sum(0))):
        assert torch.equal(svc(tau, taus, name=name, alpha=0.1, coefficient=0.5), 0.5 * tau)


def test_svc_returns_what_all_tasks_agree_on():
    tau = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    for copies, coefficient in itertools.product((1, 2, 7), (0.3, 1.0)):
        taus = tau.expand(copies, 8, 5)
        found = svc(taus.sum(0), taus, name="w", alpha=0.1, coefficient=coefficient)
        torch.testing.assert_close(found, tau, rtol=0, atol=1e-5)


@pytest.mark.parametrize("adjustments", [calibrated("svc"), calibrated("lines", beta=0.0)], ids=["svc", "lines"])
@pytest.mark.parametrize("name", ["average", "tsv", "iso_c"])
def test_a_single_task_is_its_own_merge(name, adjustments, tmp_path):
    (tau,) = drawn(1)
    for key, found in merged(write(tmp_path, [tau]), name, adjustments).items():
        torch.testing.assert_close(found.float(), tau[key], rtol=0, atol=5e-6)


@pytest.mark.parametrize("adjustments", [calibrated("svc"), LINES], ids=["svc", "lines"])
@pytest.mark.parametrize("name", ["average", "ties", "magmax"])
def test_the_unit_and_the_order_of_the_task_vectors_do_not_matter(name, adjustments, tmp_path):
    taus = drawn(3, common=1.0)
    found = merged(write(tmp_path, taus), name, adjustments)
    for unit in (2.0**-20, 2.0**12):
        scaled = merged(write(tmp_path, [{k: unit * v for k, v in tau.items()} for tau in taus]), name, adjustments)
        assert all(torch.equal(scaled[key], unit * found[key]) for key in found)
    turned = merged(write(tmp_path, taus[::-1]), name, adjustments)
    for key, tau in found.items():
        torch.testing.assert_close(turned[key], tau, rtol=0, atol=2e-4)


def test_what_every_task_exceeds_does_not_depend_on_how_often_it_is_counted(tmp_path):
    """Where no s_tr is below α, σ_r/s_tr has the unit of a task: a mean and a sum calibrate alike."""
    paths = write(tmp_path, drawn(3, {"w": (9, 1)}, common=9.0))
    found = [merged(paths, name, calibrated("svc", coefficient=c))["w"] for name, c in (("average", 1), ("average", 3))]
    found.append(merged(paths, "task_arithmetic", calibrated("svc", coefficient=0.3))["w"])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=1e-4)


def test_rotations_rotate_what_svc_makes_of_low_ranks(tmp_path):
    """Also where a task does nothing in most directions, which differ by rounding alone."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    taus = [random(40, 2) @ random(2, 30) for _ in range(3)]
    taus[2][:, :] = 0
    taus[2][7, 3] = 5
    taus[0][7], taus[1][7] = 0, 0
    left, right = torch.linalg.qr(random(40, 40)).Q, torch.linalg.qr(random(30, 30)).Q
    results = [
        merged(write(tmp_path, [{"w": tau.float().contiguous()} for tau in turned]), "average", calibrated("svc"))["w"]
        for turned in ([left @ tau @ right for tau in taus], taus)
    ]
    assert (left.T @ results[0] @ right.T - results[1]).norm() < 1e-3 * results[1].norm()
    expected = CALIBRATIONS["svc"]({"w": sum(taus) / 3}, {"w": torch.stack(taus)}, 0.1, 1.0)["w"]
    assert (results[1] - expected).norm() < 1e-3 * expected.norm()


def test_lines_by_hand(tmp_path):
    """α = ‖Στ‖/(T‖τ‖) = 1/2 for a sum of two; blocks get 0.5, 0.5 + 0.2 and 0.5 + 0.4, everything else 0.5."""
    taus = [{name: torch.full((4,), value) for name in [*BLOCKS, "proj", "conv"]} for value in (1.0, 3.0)]
    for scale in (1.0, 0.5):
        found = merged(write(tmp_path, taus), "task_arithmetic", LINES, scale=scale)
        for name, tau in found.items():
            factor = 0.5 + 0.4 * BLOCKS[name][0] / 2 if name in BLOCKS else 0.5
            torch.testing.assert_close(tau, torch.full((4,), 4 * factor * scale).double(), rtol=0, atol=1e-6)


ADJUSTED = {"svc": calibrated("svc"), "lines": LINES, "weights": Adjustments(weights=[0.3, -1.0, 2.0])}
ADJUSTED["depth"] = Adjustments(depth=[0.1, 1.0, 0.3])


@pytest.mark.parametrize("kind", ADJUSTED)
@pytest.mark.parametrize("name", ["magmax", "ties", "tsv"])
def test_block_size_and_threads_change_no_bit(kind, name, tmp_path):
    large = {"blocks.0.w": (301, 900), "blocks.1.w": (30, 40), "blocks.1.b": (7,), "c": ()}
    large["blocks.0.w"] = (30, 133) if name == "tsv" else large["blocks.0.w"] if kind != "svc" else (520, 300)
    paths = write(tmp_path, drawn(3, large), drawn(1, large, seed=3)[0])
    contents = set()
    for threads, block in ((1, CHUNK), (3, 2 * CHUNK), (None, None)):
        merged(paths, name, ADJUSTED[kind], threads=threads, block=block)
        contents.add((tmp_path / "m.safetensors").read_bytes())
    assert len(contents) == 1


@pytest.mark.parametrize("kind", ADJUSTED)
def test_files_and_memory_and_several_scales_agree(kind, tmp_path):
    paths = write(tmp_path, drawn(3), drawn(1, seed=3)[0])
    bound = strategies.get("ties").bind({"scope": "all"}).adjusted(ADJUSTED[kind])
    tau, hashes = merged_task_vector(paths[0], paths[1:], bound)
    merge_checkpoints(
        paths[0], paths[1:], "ties", tmp_path / "m.safetensors", scale=[0.3, 1], adjustments=ADJUSTED[kind]
    )
    base = load_file(paths[0])
    for scale in (0.3, 1):
        found = load_file(tmp_path / f"m-{scale}.safetensors")
        assert all(torch.equal(found[key], scale * tau[key] + base[key]) for key in base)
    with safe_open(tmp_path / "m-1.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert [item["xxh3"] for item in json.loads(metadata["inputs"])] == hashes
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"{i}.safetensors" for i in range(4)),
        *("m-0.3.safetensors", "m-1.safetensors"),
    ]


def test_shards_in_a_new_folder_are_calibrated_too(tmp_path):
    """The merged task vector waits beside the output, which may be the first file of its folder."""
    paths = write(tmp_path, drawn(2))
    expected = merged(paths, "average", calibrated("svc"))
    index = {"weight_map": dict.fromkeys(SHAPES, "0.safetensors")}
    (tmp_path / "base").mkdir()
    paths[0].rename(tmp_path / "base/0.safetensors")
    (tmp_path / "base/model.safetensors.index.json").write_text(json.dumps(index))
    out = tmp_path / "deep/er/m"
    merge_checkpoints(tmp_path / "base", paths[1:], "average", out, adjustments=calibrated("svc"))
    assert all(
        torch.equal(tensor.double(), expected[name]) for name, tensor in load_file(out / "0.safetensors").items()
    )
    assert [path.name for path in out.parent.iterdir()] == ["m"]


def test_the_metadata_name_the_calibration_and_its_options(tmp_path):
    paths = write(tmp_path, drawn(2))
    expected = {
        "magmax": {"name": "svc", "alpha": 0.1, "coefficient": 0.5},
        "tsv": {"name": "svc", "alpha": 1.0, "coefficient": 1.0},
        "iso_cts": {"name": "svc", "alpha": 0.2, "coefficient": 1.0},
    }
    for name, record in expected.items():
        merged(paths, name, calibrated("svc"))
        with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
            metadata = file.metadata()
        assert json.loads(metadata["calibration"]) == record
        assert metadata["scale"] == "1.0"  # the calibration's λ, not the strategy's


def test_without_adjustments_no_byte_changes(tmp_path):
    paths = write(tmp_path, drawn(2))
    contents = []
    for adjustments in ({}, {"adjustments": Adjustments()}):
        merge_checkpoints(paths[0], paths[1:], "magmax", tmp_path / "m.safetensors", **adjustments)
        contents.append((tmp_path / "m.safetensors").read_bytes())
    assert contents[0] == contents[1]
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert file.metadata().keys() == {"format", "strategy", "scale", "options", "skipped", "version", "inputs"}


@pytest.mark.parametrize("name", calibrations.names())
def test_yaml_states_the_defaults_of_the_function(name):
    calibration, node = calibrations.get(name), config("merge", f"calibration={name}").calibration
    assert node.scale == calibration.scale
    options = {key: value for key, value in node.items() if key not in ("_target_", "_partial_", "scale")}
    assert options == calibration.defaults()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("svd", {}, "calibration must be one of align, lines, svc; got calibration=svd"),
        (
            "svc",
            {"beta": 1},
            "calibration=svc takes calibration.alpha, calibration.coefficient; got calibration.beta=1",
        ),
        ("svc", {"alpha": 0}, "calibration.alpha must be a number, positive; got calibration.alpha=0"),
        ("svc", {"coefficient": "a"}, "calibration.coefficient must be a number, or null"),
        (
            "lines",
            {"beta": -0.1},
            "calibration.beta must be a number, 0 or more, or select .* got calibration.beta=-0.1",
        ),
        ("lines", {"beta": None}, "calibration.beta must be a number"),
        ("lines", {}, "calibration.beta=select is for merge.py, .* give a number"),
        (
            "lines",
            {"beta": 1},
            "calibration=lines needs weights in two or more numbered blocks, .* such as|but for example w",
        ),
    ],
)
def test_wrong_options_are_refused_before_anything_is_written(name, options, message, tmp_path):
    paths = write(tmp_path, drawn(2, {"w": (3, 3)}))
    with pytest.raises(UserError, match=message):
        merged(paths, "average", calibrated(name, **options))
    assert not (tmp_path / "m.safetensors").exists()


def test_values_that_cannot_be_calibrated_are_refused(tmp_path):
    zero = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    with pytest.raises(UserError, match="divides by the length of the merged task vector, which is zero"):
        merged(write(tmp_path, [zero, zero]), "average", LINES)
    assert not any(tau.any() for tau in merged(write(tmp_path, [zero, zero]), "average", calibrated("svc")).values())
    (tmp_path / "m.safetensors").unlink()
    huge = {"w": torch.full((3, 3), 3e38)}
    with pytest.raises(UserError, match="a calibration needs finite values; those of w add up to infinite ones"):
        merged(write(tmp_path, [huge, huge]), "task_arithmetic", calibrated("svc"))
    nan = {"w": torch.full((3, 3), float("nan"))}
    with pytest.raises(UserError, match=r"w in .*1.safetensors has NaN"):
        merged(write(tmp_path, [nan, huge]), "average", calibrated("svc"))
    assert not (tmp_path / "m.safetensors").exists()


MEMORY = """
from pathlib import Path
from mergestream.merging import merge_checkpoints
from mergestream.strategies import calibrations
from mergestream.strategies.adjustments import Adjustments
paths = [f"{i}.safetensors" for i in range(13)]
for name, options in (("lines", {"beta": 0.5}), ("svc", {})):
    for count in (1, 3, 12):  # the first imports what it needs
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew
        bound = calibrations.get(name).bind(options)
        merge_checkpoints(
            paths[0], paths[1 : count + 1], "average", "out.safetensors", adjustments=Adjustments(calibration=bound)
        )
        print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""


def test_memory_does_not_grow_with_the_tasks(tmp_path):
    """Peak memory of merges of 3 and of 12 checkpoints, 16 MB each, in a process without other garbage."""
    generator = torch.Generator().manual_seed(0)
    for index in range(13):
        tensors = {f"blocks.{block}.w": torch.randn(1 << 14, 32, generator=generator) for block in range(8)}
        save_file(tensors, tmp_path / f"{index}.safetensors")
    done = subprocess.run([sys.executable, "-c", MEMORY], cwd=tmp_path, check=True, capture_output=True, text=True)
    peaks = [int(line) for line in done.stdout.split()]
    for few, many in zip(peaks[1::3], peaks[2::3], strict=True):
        assert many - few < 40_000  # KB; nine more checkpoints are 151 MB
