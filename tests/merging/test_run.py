"""merge.py and merge_checkpoints: a run's encoders, prefixes, and files that this project did not make."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from helpers import command, config, files_below
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mergestream.compose import build as compose
from mergestream.merging import merge_checkpoints
from mergestream.models.tiny import tiny
from mergestream.runs.directory import Run
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

RUN = ("tasks=3",)


@pytest.fixture
def root(trained, tmp_path):
    """A copy of the trained runs, to merge in."""
    shutil.copytree(trained, tmp_path / "runs")
    return tmp_path / "runs"


def run_of(root, *overrides):
    return Run.of(config("merge", f"root={root}", *RUN, *overrides))


def test_merge_finds_the_run_of_the_same_values(root):
    outcome = command("merge.py", f"root={root}", *RUN, "strategy=average", "lambda=0.5")
    assert outcome.code == 0, outcome.err
    assert "average, λ = 0.5" in outcome.out
    run = run_of(root)
    folder = run.path / "merges/average-0.5"
    merged = load_file(folder / "merged.safetensors")
    base = load_file(next((root / "_base").iterdir()))
    for name, tensor in merged.items():
        expected = base[name].double()
        for path in run.encoders():
            expected = expected + 0.5 / 3 * (load_file(path)[name].double() - base[name].double())
        torch.testing.assert_close(tensor.double(), expected, rtol=0, atol=1e-6)
    metrics = files.read_json(folder / "metrics.json")
    assert metrics["kind"] == "merge"
    assert metrics["config"]["epochs"] == 1  # of the training, though this command does not say so
    assert metrics["config"]["strategy"]["_target_"].endswith(".average")
    assert metrics["merge"] == {"strategy": "average", "scale": 0.5, "options": {}, "changed": {}}
    assert len(metrics["overall"]) == 1
    with safe_open(folder / "merged.safetensors", framework="pt") as file:
        assert file.metadata()["strategy"] == "average"
        assert file.metadata()["scale"] == "0.5"


def test_scale_zero_is_zero_shot_and_default_is_the_papers(root):
    assert command("merge.py", f"root={root}", *RUN, "lambda=0").code == 0
    metrics = files.read_json(run_of(root).path / "merges/magmax-0/metrics.json")
    assert metrics["overall"] == [metrics["zero_shot"]["overall"]]
    assert command("merge.py", f"root={root}", *RUN).code == 0
    assert (run_of(root).path / "merges/magmax-0.5/metrics.json").is_file()


def test_negative_scale_subtracts(root):
    assert command("merge.py", f"root={root}", *RUN, "lambda=-0.5").code == 0
    folder = run_of(root).path / "merges"
    command("merge.py", f"root={root}", *RUN, "lambda=0.5")
    minus, plus = (load_file(folder / f"magmax-{s}" / "merged.safetensors") for s in ("-0.5", "0.5"))
    base = load_file(next((root / "_base").iterdir()))
    for name in base:
        torch.testing.assert_close(minus[name] + plus[name], 2 * base[name], rtol=0, atol=1e-6)


def test_prefixes_fill_the_matrix(root):
    assert command("merge.py", f"root={root}", *RUN, "prefixes=true").code == 0
    folder = run_of(root).path / "merges/magmax-0.5"
    metrics = files.read_json(folder / "metrics.json")
    assert len(metrics["accuracy"]["task_agnostic"]) == 3
    assert metrics["summary"]["forgetting"] is not None
    with_prefixes = load_file(folder / "merged.safetensors")
    shutil.rmtree(folder)
    assert command("merge.py", f"root={root}", *RUN).code == 0
    alone = load_file(folder / "merged.safetensors")
    assert all(torch.equal(with_prefixes[name], alone[name]) for name in alone)
    last = files.read_json(folder / "metrics.json")
    assert last["overall"] == metrics["overall"][-1:]


def test_a_plain_merge_or_an_export_keeps_prefixes(root):
    assert command("merge.py", f"root={root}", *RUN, "prefixes=true").code == 0
    folder = run_of(root).path / "merges/magmax-0.5"
    before = (folder / "metrics.json").read_bytes()
    for words in ([], ["export=open_clip"], ["candidates=[0.5]"]):
        outcome = command("merge.py", f"root={root}", *RUN, *words)
        assert outcome.code == 0, outcome.err
        assert "already merged" in outcome.out
        assert (folder / "metrics.json").read_bytes() == before
    assert (folder / "open_clip.safetensors").is_file()


def test_strategies_and_methods_in_one_sweep(root):
    outcome = command("merge.py", "-m", f"root={root}", *RUN, "strategy=glob(t*)", "method=seq,ind,joint")
    assert outcome.code == 0, outcome.err
    for method in ("seq", "ind", "joint"):
        folders = list((run_of(root, f"method={method}").path / "merges").iterdir())
        assert {folder.name.split("-")[0] for folder in folders} >= {"task_arithmetic", "ties", "tsv"}
        assert all((folder / "merged.safetensors").is_file() for folder in folders)


def test_jobs_of_a_sweep_share_what_they_measure_with(root, monkeypatch):
    loaded = []
    monkeypatch.setattr(compose, "load_clip", lambda cfg: loaded.append(cfg.seed) or tiny())
    sweep = ("merge.py", "-m", f"root={root}", *RUN, "strategy=average,magmax", "lambda=0.5")
    assert command(*sweep).code == 0
    assert len(loaded) == 1
    results = sorted(run_of(root).path.glob("merges/*/metrics.json"))
    together = [files.read_json(path)["accuracy"] for path in results]
    for path in results:
        path.unlink()
    assert command(*sweep[:-2], "strategy=magmax,average", "lambda=0.5").code == 0  # another command loads anew
    assert len(loaded) == 2
    assert [files.read_json(path)["accuracy"] for path in results] == together


def test_options_are_part_of_the_folder(root):
    assert command("merge.py", f"root={root}", *RUN, "strategy=ties", "strategy.density=0.1").code == 0
    assert (run_of(root).path / "merges/ties-density=0.1-0.55").is_dir()
    assert command("merge.py", f"root={root}", *RUN, "strategy=random_mix").code == 0
    assert (run_of(root).path / "merges/random_mix-1").is_dir()


def test_merge_of_another_config_is_refused(root):
    outcome = command("merge.py", f"root={root}", *RUN, "stream.order=natural")
    assert outcome.code == 1
    assert "stream.order=shuffled" in outcome.err
    outcome = command("merge.py", f"root={root}", *RUN, "epochs=7")
    assert outcome.code == 1
    assert "epochs=1" in outcome.err
    assert not (run_of(root).path / "merges").exists()


def test_other_data_than_the_run_was_trained_on_are_refused(root):
    outcome = command("merge.py", f"root={root}", *RUN, "+dataset.test_every=3")
    assert outcome.code == 1
    assert "dataset.test_every=3" in outcome.err


@pytest.mark.parametrize("damage", ["encoder deleted", "encoder cut", "base altered", "base deleted", "another base"])
def test_a_damaged_run_is_not_merged(damage, root):
    run = run_of(root)
    base = next((root / "_base").iterdir())
    if damage == "encoder deleted":
        run.encoder(1).unlink()
    elif damage == "encoder cut":
        run.encoder(1).write_bytes(run.encoder(1).read_bytes()[:-8])
    elif damage == "base altered":
        base.write_bytes(run.encoder(0).read_bytes())
    elif damage == "base deleted":
        base.unlink()
    else:
        save_file(load_file(run.encoder(1)), run.encoder(1), metadata={"base_sha256": "0" * 64})
    outcome = command("merge.py", f"root={root}", *RUN)
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1
    assert not (run.path / "merges").exists()


@pytest.mark.parametrize("name", ["metrics.json", "base.json", "stream.json", "config.yaml"])
@pytest.mark.parametrize("content", [None, "{}", "[1]", "{{{"])
def test_damaged_records_are_one_line(name, content, root):
    path = run_of(root).path / name
    path.unlink() if content is None else path.write_text(content)
    outcome = command("merge.py", f"root={root}", *RUN)
    assert outcome.code == 1
    assert len(outcome.err.strip().splitlines()) == 1, outcome.err


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


def test_damaged_files_and_wrong_calls(tmp_path):
    good = tmp_path / "B.safetensors"
    save_file({"w": torch.zeros(2)}, good)
    (tmp_path / "cut.safetensors").write_bytes(good.read_bytes()[:-3])
    out = tmp_path / "M.safetensors"
    with pytest.raises(UserError, match=r"cut.safetensors must be a valid"):
        merge_checkpoints(good, [tmp_path / "cut.safetensors"], "magmax", out)
    with pytest.raises(UserError, match="at least one checkpoint"):
        merge_checkpoints(good, [], "magmax", out)
    with pytest.raises(UserError, match=r"out must end in \.safetensors, or be a folder; got out=.*M\.pt"):
        merge_checkpoints(good, [good], "magmax", tmp_path / "M.pt")
    with pytest.raises(UserError, match="finite number"):
        merge_checkpoints(good, [good], "magmax", out, scale=float("nan"))
    with pytest.raises(UserError, match="strategy.density must be a fraction in \\(0, 1\\]"):
        merge_checkpoints(good, [good], "ties", out, density=20)
    assert not out.exists()


def test_report_lists_every_result(root):
    command("merge.py", "-m", f"root={root}", *RUN, "method=seq,ind", "strategy=magmax")
    outcome = command("report.py", f"root={root}")
    assert outcome.code == 0, outcome.err
    for name in ("MagMax", "MaxAbs", "sequential", "Joint", "Zero-shot"):
        assert name in outcome.out
    overall = json.loads(run_of(root).metrics.read_text())["summary"]["final_accuracy"]
    assert f"{100 * overall:.2f}" in outcome.out
