"""merge.py: the merge of a run, its evaluation and its λ; and files that this project did not write."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import command, config, files_below
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mergestream import evaluation
from mergestream.classifier.classifier import Classifier
from mergestream.compose.inputs import Inputs
from mergestream.merging import merge_checkpoints
from mergestream.models.clip import text_head
from mergestream.models.tiny import tiny
from mergestream.runtime import files
from mergestream.runtime.errors import UserError


@pytest.fixture
def merge(root, words):
    """Merge the run of the copied root; returns the outcome."""
    return lambda *overrides: command("merge.py", f"root={root}", *words, *overrides)


@pytest.fixture
def folder(root, run_at):
    """The merges of the sequential run."""
    return run_at(root).path / "merges"


def base_of(root):
    return load_file(next((root / "_base").iterdir()))


def failed(outcome):
    """The one line of a command that failed."""
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    return line


def test_the_run_of_the_same_values_is_merged_and_recorded(root, words, folder, run_at):
    naming = [word for word in words if word != "epochs=1"]  # the training's config need not be repeated
    outcome = command("merge.py", f"root={root}", *naming, "strategy=average", "lambda=0.5")
    assert outcome.code == 0, outcome.err
    assert "average, λ = 0.5" in outcome.out
    base, encoders = base_of(root), [load_file(path) for path in run_at(root).encoders()]
    for name, tensor in load_file(folder / "average-0.5/merged.safetensors").items():
        taus = torch.stack([encoder[name].double() - base[name].double() for encoder in encoders])
        torch.testing.assert_close(tensor.double(), base[name] + 0.5 * taus.mean(0), rtol=0, atol=1e-6)
    metrics = files.read_json(folder / "average-0.5/metrics.json")
    assert metrics["kind"] == "merge"
    assert metrics["config"]["epochs"] == 1
    assert metrics["config"]["strategy"]["_target_"].endswith(".average")
    assert metrics["merge"] == {"strategy": "average", "scale": 0.5, "options": {}, "changed": {}}
    assert len(metrics["overall"]) == 1
    with safe_open(folder / "average-0.5/merged.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata.pop("checksum")
    assert len(json.loads(metadata.pop("inputs"))) == 4
    assert metadata.pop("version")
    assert metadata == {"format": "pt", "strategy": "average", "scale": "0.5", "options": "{}"}


def test_scale_zero_is_zero_shot_and_the_default_is_the_papers(merge, folder):
    assert merge("lambda=0").code == 0
    metrics = files.read_json(folder / "magmax-0/metrics.json")
    assert metrics["overall"] == [metrics["zero_shot"]["overall"]]
    assert merge().code == 0
    assert (folder / "magmax-0.5/metrics.json").is_file()


def test_negative_scale_subtracts(merge, folder, root):
    assert merge("lambda=[-0.5,0.5]").code == 0
    minus, plus = (load_file(folder / f"magmax-{scale}/merged.safetensors") for scale in ("-0.5", "0.5"))
    for name, tensor in base_of(root).items():
        torch.testing.assert_close(minus[name] + plus[name], 2 * tensor, rtol=0, atol=1e-6)


def test_prefixes_fill_the_matrix_and_change_no_bit(merge, folder):
    assert merge("prefixes=true").code == 0
    metrics = files.read_json(folder / "magmax-0.5/metrics.json")
    assert np.shape(metrics["accuracy"]["task_agnostic"]) == (3, 3)
    assert metrics["summary"]["forgetting"] is not None
    with_prefixes = (folder / "magmax-0.5/merged.safetensors").read_bytes()
    shutil.rmtree(folder)
    assert merge().code == 0
    assert (folder / "magmax-0.5/merged.safetensors").read_bytes() == with_prefixes
    assert files.read_json(folder / "magmax-0.5/metrics.json")["overall"] == metrics["overall"][-1:]


def test_a_plain_merge_or_an_export_keeps_prefixes(merge, folder):
    assert merge("prefixes=true").code == 0
    before = (folder / "magmax-0.5/metrics.json").read_bytes()
    for words in ([], ["export=open_clip"], ["candidates=[0.5]"]):
        outcome = merge(*words)
        assert outcome.code == 0, outcome.err
        assert "already merged" in outcome.out
        assert (folder / "magmax-0.5/metrics.json").read_bytes() == before
    assert (folder / "magmax-0.5/open_clip.safetensors").is_file()


def test_strategies_and_methods_in_one_sweep(root, words, run_at):
    outcome = command("merge.py", "-m", f"root={root}", *words, "strategy=glob(t*)", "method=seq,joint")
    assert outcome.code == 0, outcome.err
    for method in ("seq", "joint"):
        folders = list((run_at(root, f"method={method}").path / "merges").iterdir())
        assert {folder.name.split("-")[0] for folder in folders} == {"task_arithmetic", "ties", "tsv"}
        assert all((folder / "merged.safetensors").is_file() for folder in folders)


def test_jobs_of_a_sweep_share_the_evaluator(root, words, folder, monkeypatch):
    loaded = []
    monkeypatch.setattr(Inputs, "clip", lambda self: loaded.append(self) or tiny())
    sweep = ("merge.py", "-m", f"root={root}", *words, "lambda=0.5")
    assert command(*sweep, "strategy=average,magmax").code == 0
    assert len(loaded) == 1
    results = sorted(folder.glob("*/metrics.json"))
    together = [files.read_json(path)["accuracy"] for path in results]
    for path in results:
        path.unlink()
    assert command(*sweep, "strategy=magmax,average").code == 0
    assert len(loaded) == 2  # another command loads its own
    assert [files.read_json(path)["accuracy"] for path in results] == together


def test_options_are_part_of_the_folder(merge, folder):
    assert merge("strategy=ties", "strategy.density=0.1").code == 0
    assert merge("strategy=random_mix").code == 0  # its seed is the run's
    assert {path.name for path in folder.iterdir()} == {"ties-density=0.1-0.55", "random_mix-1"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=6", "does not exist"),
        ("stream.order=shuffled", "stream.order=natural"),
        ("epochs=7", "epochs=1"),
        ("+dataset.crop=3", "dataset.crop=3"),
        ("method=zeroshot", "method=zeroshot trains none"),
    ],
)
def test_a_run_that_does_not_fit_the_command_is_refused(override, message, merge, root):
    assert message in failed(merge(override))
    assert not list(root.rglob("merges"))


def test_other_data_than_those_of_the_training_are_refused(merge, words, folder):
    (path,) = (word.removeprefix("dataset.path=") for word in words if word.startswith("dataset.path="))
    added = f"{path}/test/one/another.png"
    Image.new("RGB", (32, 32)).save(added)
    try:
        assert "was started with other data" in failed(merge())
    finally:
        Path(added).unlink()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("encoder deleted", "task-01/encoder.safetensors is missing"),
        ("encoder cut", "task-01/encoder.safetensors must be a valid .safetensors file"),
        ("another encoder", "task-01/encoder.safetensors is not the encoder that was evaluated"),
        ("another base", "task-01/encoder.safetensors was trained from another θ₀"),
        ("base altered", "which is missing or altered"),
        ("base deleted", "which is missing or altered"),
    ],
)
def test_a_damaged_run_is_not_merged(damage, message, merge, root, run_at):
    run, base = run_at(root), next((root / "_base").iterdir())
    encoder = run.encoder(1)
    tensors, metadata = load_file(encoder), files.read_metadata(encoder)
    if damage == "encoder deleted":
        encoder.unlink()
    elif damage == "encoder cut":
        encoder.write_bytes(encoder.read_bytes()[:-8])
    elif damage == "another encoder":
        files.write_tensors(encoder, {**tensors, "proj": tensors["proj"] + 1}, metadata)
    elif damage == "another base":
        files.write_tensors(encoder, tensors, {**metadata, "base_sha256": "0" * 64})
    elif damage == "base altered":
        base.write_bytes(run.encoder(0).read_bytes())
    else:
        base.unlink()
    assert message in failed(merge())
    assert not (run.path / "merges").exists()


RECORDS = [(name, content) for name in ("metrics.json", "base.json", "stream.json") for content in (None, "{}")]
RECORDS += [("metrics.json", "[1]"), ("base.json", "{{{"), ("config.yaml", None), ("config.yaml", "{{{")]


@pytest.mark.parametrize(("name", "content"), RECORDS)
def test_damaged_records_are_one_line(name, content, merge, root, run_at):
    path = run_at(root).path / name
    path.unlink() if content is None else path.write_text(content)
    # Without metrics.json a run has not finished.
    assert (name if content or name != "metrics.json" else "a finished run is needed") in failed(merge())


def test_the_report_lists_the_merge(merge, root):
    assert merge().code == 0
    outcome = command("report.py", f"root={root}")
    assert outcome.code == 0, outcome.err
    for name in ("MagMax", "sequential", "Joint", "Zero-shot"):
        assert name in outcome.out


# λ


def test_several_scales_at_once_are_the_single_ones(merge, folder):
    def results():
        found = {path.parent.name: files.read_json(path)["overall"] for path in folder.glob("*/metrics.json")}
        return found, {path.parent.name: path.read_bytes() for path in folder.glob("*/merged.safetensors")}

    assert merge("lambda=[0.25,1]").code == 0
    together = results()
    assert together[0].keys() == {"magmax-0.25", "magmax-1"}
    shutil.rmtree(folder)
    assert merge("lambda=0.25").code == 0
    assert merge("lambda=1").code == 0
    assert results() == together


@pytest.fixture(scope="module")
def validated(tmp_path_factory, words):
    """A root with a run that was trained without its validation data. Not to be changed."""
    root = tmp_path_factory.mktemp("validated")
    assert command("train.py", f"root={root}", *words, "stream.validation=0.2").code == 0
    return root


@pytest.fixture
def select(validated, words, tmp_path):
    """Select λ for a copy of the run; returns the outcome and the run's merges."""
    shutil.copytree(validated, tmp_path / "selected")

    def run(*overrides):
        arguments = [f"root={tmp_path}/selected", *words, "stream.validation=0.2", *overrides]
        return command("merge.py", *arguments), next((tmp_path / "selected").rglob("config.yaml")).parent / "merges"

    return run


def test_lambda_is_selected_on_validation_data(select):
    outcome, folder = select("lambda=select", "candidates=[0.9,0.1,0.5]")
    assert outcome.code == 0, outcome.err
    assert "chosen on validation data" in outcome.out
    chosen = files.read_json(folder / "magmax-select/metrics.json")
    assert chosen["merge"]["selected_on"] == "validation"
    tried = {item["lambda"]: item["accuracy"] for item in chosen["merge"]["validation"]}
    assert list(tried) == [0.1, 0.5, 0.9]
    assert chosen["merge"]["scale"] == max(tried, key=lambda scale: (tried[scale], -scale))
    assert select(f"lambda={chosen['merge']['scale']}")[0].code == 0
    single = files.read_json(folder / f"magmax-{chosen['merge']['scale']:g}/metrics.json")
    assert chosen["overall"] == single["overall"]
    again, _ = select("lambda=select", "candidates=[0.9,0.1,0.5]")
    assert "already merged, nothing to do" in again.out
    assert "already merged" not in select("lambda=select", "candidates=[0.1,0.5]")[0].out
    assert "λ on validation" in command("report.py", f"root={folder.parents[5]}").out


def logits_of(images, weights, prompts):
    """The logits of some images in a plain loop."""
    clip = tiny()
    clip.encoder.load_state_dict(load_file(weights))
    with torch.no_grad():
        head = text_head(clip, prompts)
        return [head(clip.encoder(clip.transforms.eval(image)[None]))[0].double() for image in images]


def calibration_error(logits, labels, temperature):
    bins = [[] for _ in range(15)]
    for z, label in zip(logits, labels, strict=True):
        confidence, found = (z / temperature).softmax(0).max(0)
        bins[int(confidence * 15)].append((confidence.item(), found.item() == label))
    return sum(abs(sum(right - confidence for confidence, right in b)) for b in bins) / len(labels)


def test_a_merge_knows_its_calibration_and_chooses_a_temperature_on_validation_data(select, words, tmp_path):
    outcome, folder = select("lambda=[0.5,0.3]", "export=classifier")
    assert outcome.code == 0, outcome.err
    inputs = Inputs(config("merge", f"root={tmp_path}", *words, "stream.validation=0.2"))
    source = inputs.source()
    stream = inputs.stream(tiny().transforms, source)
    validation = np.concatenate([task.validation for task in stream.tasks])
    for scale in (0.5, 0.3):
        path = folder / f"magmax-{scale}"
        found = files.read_json(path / "metrics.json")["calibration"]
        of_test = logits_of(source.test.images, path / "merged.safetensors", source.prompts)
        labels = source.test.labels.tolist()
        for key, temperature in (("ece", 1.0), ("ece_with_temperature", found["temperature"])):
            assert found[key] == pytest.approx(calibration_error(of_test, labels, temperature), abs=1e-5)
        held_out = logits_of(
            [source.train.images[int(i)] for i in validation], path / "merged.safetensors", source.prompts
        )

        def loss(temperature, held_out=held_out):
            own = source.train.labels[validation].tolist()
            return -sum((z / temperature).log_softmax(0)[c].item() for z, c in zip(held_out, own, strict=True))

        best = found["temperature"]
        assert loss(best) <= min(loss(temperature) for temperature in np.geomspace(0.1, 10, 15)) + 1e-6
        assert f"temperature {best:.3f}, chosen on validation data" in outcome.out
        assert Classifier.load(path / "classifier").temperature == best


def test_a_merge_without_validation_data_has_no_temperature(merge, folder):
    outcome = merge()
    found = files.read_json(folder / "magmax-0.5/metrics.json")["calibration"]
    assert 0 <= found.pop("ece") <= 1
    assert found == {"bins": 15, "temperature": None, "ece_with_temperature": None}
    assert "temperature" not in outcome.out


def test_select_never_looks_at_the_test_split(select, monkeypatch):
    """Before the choice, only the validation split is evaluated."""
    splits = []
    original = evaluation.evaluate

    def evaluate(*positional, split="test", **named):
        splits.append(split)
        return original(*positional, split=split, **named)

    monkeypatch.setattr(evaluation, "evaluate", evaluate)
    outcome, _ = select("lambda=select", "candidates=[0.2,0.4,0.6]")
    assert outcome.code == 0, outcome.err
    assert splits == ["validation", "validation", "validation", "test"]


def test_select_needs_validation_data(merge, folder):
    assert "stream.validation=0.1" in failed(merge("lambda=select"))
    assert not folder.exists()


# Files that this project did not write


def test_any_files(tmp_path):
    base = {"a": torch.zeros(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "steps": torch.tensor([3])}
    one = {"a": torch.full((2, 3), 2.0), "b": torch.full((4,), 1.5, dtype=torch.bfloat16), "steps": torch.tensor([9])}
    two = {"a": torch.full((2, 3), -4.0), "b": torch.full((4,), 1.25, dtype=torch.bfloat16), "steps": torch.tensor([8])}
    save_file(base, tmp_path / "B.safetensors")
    save_file(one, tmp_path / "A1.safetensors")
    torch.save({"state_dict": two}, tmp_path / "A2.pt")
    paths = f"[{tmp_path}/A1.safetensors,{tmp_path}/A2.pt]"
    out = tmp_path / "deep/M.safetensors"
    outcome = command(
        "merge.py", f"base={tmp_path}/B.safetensors", f"checkpoints={paths}", "strategy=magmax", f"out={out}"
    )
    assert outcome.code == 0, outcome.err
    assert f"merged 2 checkpoints with magmax, λ = 0.5, into {out}" in outcome.out
    merged = load_file(out)
    assert torch.equal(merged["a"], torch.full((2, 3), -2.0))
    assert torch.equal(merged["b"], torch.full((4,), 1.25, dtype=torch.bfloat16))
    assert torch.equal(merged["steps"], base["steps"])  # integers are copied from the base
    assert files_below(tmp_path / "deep") == [out]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": torch.zeros(2, dtype=torch.int64)}, r"w is torch.float32 in .*B.safetensors and torch.int64 in"),
        ({"w": torch.zeros(3)}, r"w is \[2\] in .*B.safetensors and \[3\] in .*A.safetensors"),
        ({"v": torch.zeros(2)}, r"B.safetensors has no v"),
        ({"w": torch.tensor([1.0, float("nan")])}, r"w in .*A.safetensors has NaN"),
        ({"w": torch.zeros(2), "extra": torch.zeros(1)}, r"B.safetensors has no extra"),
    ],
)
def test_files_that_do_not_fit(change, message, tmp_path):
    save_file({"w": torch.zeros(2)}, tmp_path / "B.safetensors")
    save_file(change, tmp_path / "A.safetensors")
    out = tmp_path / "M.safetensors"
    with pytest.raises(UserError, match=message):
        merge_checkpoints(tmp_path / "B.safetensors", [tmp_path / "A.safetensors"], "magmax", out)
    assert not out.exists()


WRONG = [
    ({"checkpoints": ["cut.safetensors"]}, r"cut.safetensors must be a valid"),
    ({"checkpoints": []}, "at least one checkpoint"),
    ({"checkpoints": "B.safetensors"}, "checkpoints must be a list of paths; got checkpoints=B.safetensors"),
    ({"out": "M.pt"}, r"out must end in \.safetensors, or be a folder; got out=M\.pt"),
    ({"strategy": "magmix"}, "strategy must be one of average, .*; got strategy=magmix"),
    ({"scale": float("nan")}, "lambda must be a number, finite; got lambda=nan"),
    ({"scale": [0.5, 0.5]}, r"lambda must be .* different numbers; got lambda=\[0.5, 0.5\]"),
    ({"scale": []}, r"lambda must be .* different numbers; got lambda=\[\]"),
    ({"dtype": "int8"}, "dtype must be one of float32, bfloat16, float16, or null for that of θ₀; got dtype=int8"),
    ({"on_mismatch": "ignore"}, "on_mismatch must be one of error, skip; got on_mismatch=ignore"),
    ({"threads": 0}, "threads must be a whole number, 1 or more; got threads=0"),
    ({"block": 1000}, "block must be a multiple of 131072 elements; got block=1000"),
    ({"strategy": "ties", "density": 20}, r"strategy.density must be a fraction in \(0, 1\]"),
    ({"density": 0.1}, "strategy=magmax takes no options; got strategy.density=0.1"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_wrong_arguments(change, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_file({"w": torch.zeros(2)}, "B.safetensors")
    content = (tmp_path / "B.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(content[:-3])
    arguments = {
        "base": "B.safetensors",
        "checkpoints": ["B.safetensors"],
        "strategy": "magmax",
        "out": "M.safetensors",
    }
    with pytest.raises(UserError, match=message):
        merge_checkpoints(**(arguments | change))
    assert {path.name for path in tmp_path.iterdir()} == {"B.safetensors", "cut.safetensors"}
