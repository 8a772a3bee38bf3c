"""model.adapter=lora: training, its files, and what becomes of them."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import apart, command, config, cut_off_after, noise
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.func import functional_call

from mergestream.compose.run import run_of
from mergestream.merging import merge_checkpoints
from mergestream.merging.encoder import read_encoder
from mergestream.methods.ewc import EWC
from mergestream.methods.lwf import distillation_loss
from mergestream.models.adapters import LoRA, adapter_tensors, attach
from mergestream.models.clip import text_head
from mergestream.models.tiny import tiny
from mergestream.runs.directory import Run
from mergestream.runs.identity import config_hash
from mergestream.training.callbacks.checkpoint import Checkpointing
from mergestream.training.learner import Learner

LR, DECAY, SCALE = 1e-2, 0.1, 16 / 4
LORA = ("model.adapter=lora", "model.adapter_rank=4", f"optimizer.lr={LR}")
WORDS = (*noise(), "epochs=1", "tasks=2", *LORA)


def train(root: Path, *words: str) -> Run:
    outcome = command("train.py", f"root={root}", *WORDS, *words)
    assert outcome.code == 0, outcome.err
    return run_of(config("train", f"root={root}", *WORDS, *words))


def theta(run: Run, task: int) -> dict[str, torch.Tensor]:
    return read_encoder(run.encoder(task), run.base_file())


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A root with a sequential and an independent run; no test changes them."""
    root = tmp_path_factory.mktemp("adapters")
    return root, {method: train(root, f"method={method}") for method in ("seq", "ind")}


# Training


@pytest.fixture
def recorded(monkeypatch):
    """(batches, classes, head [C, D], its scale) of each task of the trainings in this test."""
    tasks: list[tuple] = []
    step = Learner.training_step

    def recorded_step(self, batch, index):
        if index == 0:  # there is one epoch
            classes = (self.columns >= 0).nonzero()[:, 0].tolist()
            tasks.append(([], classes, self.head.weight_CD.clone(), self.head.scale))
        tasks[-1][0].append([x.clone() for x in batch[:2]])
        return step(self, batch, index)

    monkeypatch.setattr(Learner, "training_step", recorded_step)
    return tasks


@pytest.fixture
def consolidated(monkeypatch):
    """The batches of the pass after each task with EWC."""
    passes: list[list] = []
    original = EWC.consolidate

    def kept(self, encoder, head, classes, batches):
        passes.append([(x.clone(), y.clone()) for x, y in batches])
        original(self, encoder, head, classes, passes[-1])

    monkeypatch.setattr(EWC, "consolidate", kept)
    return passes


def by_hand(tasks, passes, method):
    """Yield W₀ + s · B A of all matrices after each task, from products that are written out."""
    encoder = tiny().encoder
    base = {name: p.detach() for name, p in encoder.named_parameters()}
    parts = ("attn.in_proj_weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
    names = [f"transformer.resblocks.{layer}.{part}" for layer in range(4) for part in parts]
    with_adapters = tiny().encoder
    attach(with_adapters, LoRA(4, 16, ("in_proj", "c_fc", "c_proj")), seed=5)
    drawn = adapter_tensors(with_adapters)
    first = {}
    for name in names:
        layer = name.removesuffix(".weight").removesuffix(".in_proj_weight")
        first[name] = drawn[f"base_model.model.{layer}.lora_A.weight"]

    def weights(A, B):
        return {name: base[name] + SCALE * B[name] @ A[name] for name in names}

    def logits(A, B, images, head, scale):
        features = functional_call(encoder, weights(A, B), (images,))
        return scale * F.normalize(features, dim=-1) @ head.T

    A = B = fisher = anchor = teacher = None
    past: list = []
    for number, (batches, classes, head, scale) in enumerate(tasks):
        if A is None or method == "ind":
            A = {name: a.clone().requires_grad_() for name, a in first.items()}
            B = {name: torch.zeros(len(base[name]), 4, requires_grad=True) for name in names}
        trained = [*A.values(), *B.values()]
        optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=DECAY)
        warmup = round(0.1 * len(batches))
        encoder.train()
        for step, (images, labels) in enumerate(batches):
            cosine = 0.5 * (1 + math.cos(math.pi * (step - warmup) / (len(batches) - warmup)))
            optimizer.param_groups[0]["lr"] = LR * ((step + 1) / warmup if step < warmup else cosine)
            optimizer.zero_grad()
            targets = torch.tensor([classes.index(int(y)) for y in labels])
            loss = F.cross_entropy(logits(A, B, images, head, scale), targets)
            if fisher is not None:
                moved = sum((f * (p - a) ** 2).sum() for f, p, a in zip(fisher, trained, anchor, strict=True))
                loss = loss + 1e3 * 0.5 * moved
            if teacher is not None:
                old = torch.cat([h for _, h in past])
                with torch.no_grad():
                    said = logits(*teacher, images, old, scale)
                loss = loss + 0.3 * distillation_loss(logits(A, B, images, old, scale), said)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        encoder.eval()
        if method == "lwf":
            teacher = [{name: p.detach().clone() for name, p in part.items()} for part in (A, B)]
            past.append((classes, head))
        if method == "ewc":
            squares = [torch.zeros_like(p) for p in trained]
            for images, labels in passes[number]:
                targets = torch.tensor([classes.index(int(y)) for y in labels])
                loss = F.cross_entropy(logits(A, B, images, head, scale), targets)
                for total, gradient in zip(squares, torch.autograd.grad(loss, trained), strict=True):
                    total += gradient**2 / len(passes[number])
            earlier = fisher or [torch.zeros_like(p) for p in trained]
            fisher = [0.5 * old + 0.5 * new for old, new in zip(earlier, squares, strict=True)]
            anchor = [p.detach().clone() for p in trained]
        yield {**base, **{name: w.detach() for name, w in weights(A, B).items()}}


@pytest.mark.parametrize("method", ["ind", "ewc", "lwf"])  # ewc and lwf are sequential
def test_training_is_the_one_written_out(recorded, consolidated, tmp_path, method):
    more = {"ewc": ("method.estimator=batched", "method.strength=1e3"), "lwf": ("method.strength=0.3",)}
    run = train(tmp_path, f"method={method}", *more.get(method, ()))
    start = tiny().encoder.state_dict()
    for task, expected in enumerate(by_hand(recorded, consolidated, method)):
        found = theta(run, task)
        assert apart(found, expected, start) < 1e-3
        for name, weight in expected.items():
            assert torch.equal(found[name], start[name]) == torch.equal(weight, start[name])


def test_a_joint_run_trains_one_adapter(tmp_path):
    run = train(tmp_path, "method=joint")
    assert [path.name for path in run.encoders()] == ["adapter_model.safetensors"]
    assert run.result()["summary"]["final_accuracy"] is not None


def test_two_processes_train_what_one_does(trained, tmp_path):
    run, start = train(tmp_path, "method=seq", "devices=2", "accelerator=cpu"), tiny().encoder.state_dict()
    assert apart(theta(trained[1]["seq"], 1), theta(run, 1), start) < 1e-2


def test_a_training_that_is_cut_off_ends_in_the_same_bytes(tmp_path):
    words = ("method=ewc", "method.strength=1e3", "checkpoint.every_minutes=0")
    whole = train(tmp_path / "whole", *words)
    with cut_off_after(Checkpointing, "_save_if", calls=9):  # in the second task
        train(tmp_path / "cut", *words)
    run = train(tmp_path / "cut", *words)
    for t in range(2):
        for of in (Run.encoder, Run.adapter_config, Run.method_state):
            assert of(run, t).read_bytes() == of(whole, t).read_bytes()


# Files


def test_a_task_is_a_few_kilobytes(trained):
    _, runs = trained
    files = {path.name: path.stat().st_size for path in runs["seq"].task(0).iterdir()}
    assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "evaluation.json"}
    assert sum(files.values()) < runs["seq"].base_file().stat().st_size / 20
    written = json.loads(runs["seq"].adapter_config(0).read_text())
    assert (written["r"], written["lora_alpha"]) == (4, 16)
    assert all(not tensor.isnan().any() for tensor in load_file(runs["seq"].encoder(0)).values())


def test_damaged_files_are_found_and_made_again(trained, tmp_path):
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    words = (f"root={tmp_path}", *WORDS, "method=ind")
    run = run_of(config("train", *words))
    good = {path: path.read_bytes() for path in (run.adapter_config(0), run.encoder(0), run.encoder(1))}
    twice = good[run.adapter_config(0)].replace(b'"lora_alpha": 16', b'"lora_alpha": 32')
    for damaged, content in ((run.adapter_config(0), twice), (run.encoder(0), good[run.encoder(0)][:-4])):
        for path in good:
            path.write_bytes(content if path == damaged else good[path])
        for script in ("merge.py", "train.py"):
            outcome = command(script, *words)
            assert outcome.code == 1
            assert damaged.name in outcome.err
            assert "repair=true" in outcome.err
    assert command("train.py", *words, "repair=true").code == 0
    assert all(path.read_bytes() == content for path, content in good.items())


def test_a_running_merge_needs_the_last_adapter_alone(tmp_path, trained):
    root, _ = trained
    run = train(tmp_path, "method=seq", "merge_every_task=true", "keep_tasks=false")
    assert not run.encoder(0).exists()
    assert not run.adapter_config(0).exists()
    merged = command("merge.py", f"root={root}", *WORDS, "method=seq", "strategy=magmax")
    assert merged.code == 0, merged.err
    (one,), (other,) = (list(place.rglob("magmax-0.5/merged.safetensors")) for place in (tmp_path, root))
    one, other = load_file(one), load_file(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


# Merges


def written_out(run: Run, folder: Path) -> list[Path]:
    """Encoders that are saved whole, from products of the factors in the files."""
    base = load_file(run.base_file())
    paths = []
    for task in range(2):
        tensors, whole = load_file(run.encoder(task)), dict(base)
        for key, A in tensors.items():
            if key.endswith("lora_A.weight") and "out_proj" not in key:
                layer = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                name = f"{layer}.in_proj_weight" if layer.endswith("attn") else f"{layer}.weight"
                whole[name] = base[name] + SCALE * tensors[key.replace("lora_A", "lora_B")] @ A
        paths.append(folder / f"{task}.safetensors")
        save_file(whole, paths[-1])
    return paths


@pytest.mark.parametrize("strategy", ["magmax", "average", "ties"])
@pytest.mark.parametrize("method", ["seq", "ind"])
def test_a_merge_is_that_of_the_whole_encoders(trained, tmp_path, strategy, method):
    root, runs = trained
    outcome = command("merge.py", f"root={root}", *WORDS, f"method={method}", f"strategy={strategy}", "lambda=0.5")
    assert outcome.code == 0, outcome.err
    base, paths = runs[method].base_file(), written_out(runs[method], tmp_path)
    options = {"scope": "encoder"} if strategy == "ties" else {}
    merge_checkpoints(base, paths, strategy, tmp_path / "m.safetensors", scale=0.5, say=lambda _: None, **options)
    found = load_file(runs[method].path / "merges" / f"{strategy}-0.5" / "merged.safetensors")
    expected, start = load_file(tmp_path / "m.safetensors"), load_file(base)
    assert apart(found, expected, start) < 1e-3
    assert apart(found, start, start) == 1


def test_core_space_takes_the_bases_of_the_factors(trained, tmp_path):
    """M = U_Bᵀ B A V_A of each task, with singular vectors of [B_1 B_2] and of [A_1; A_2]; TIES on them, in float64."""
    _, runs = trained
    run, out = runs["ind"], tmp_path / "m.safetensors"
    adapters = [run.encoder(task) for task in range(2)]
    merge_checkpoints(run.base_file(), adapters, "core_space", out, scale=0.5, rule="ties", density=0.3)
    found, start = load_file(out), load_file(run.base_file())
    tensors = [{name: t.double() for name, t in load_file(path).items()} for path in adapters]
    key = "base_model.model.transformer.resblocks.1.mlp.c_fc.lora_{}.weight"
    B, A = ([of[key.format(letter)] for of in tensors] for letter in "BA")
    U = torch.linalg.svd(torch.cat(B, 1), full_matrices=False)[0]
    V = torch.linalg.svd(torch.cat(A), full_matrices=False)[2].T
    cores = []
    for b, a in zip(B, A, strict=True):
        core = SCALE * U.T @ b @ a @ V
        assert core.shape == (8, 8)
        smallest = core.abs().flatten().sort().values[64 - int(0.3 * 64)]
        cores.append(torch.where(core.abs() >= smallest, core, 0))
    sign = torch.stack(cores).sum(0).sign()
    agree = [(core * sign > 0) for core in cores]
    mean = sum(c * a for c, a in zip(cores, agree, strict=True)) / sum(a.double() for a in agree).clamp(min=1)
    name = "transformer.resblocks.1.mlp.c_fc.weight"
    torch.testing.assert_close((found[name] - start[name]).double(), 0.5 * U @ mean @ V.T, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", ["average", "task_arithmetic"])
def test_core_space_loses_nothing(trained, tmp_path, rule):
    """Linear rules give the same merge in the core space as outside of it: Panariello et al. 2025."""
    _, runs = trained
    merged = []
    for strategy, options in (("core_space", {"rule": rule}), (rule, {})):
        out = tmp_path / f"{strategy}.safetensors"
        paths = [runs["seq"].encoder(task) for task in range(2)]
        merge_checkpoints(runs["seq"].base_file(), paths, strategy, out, scale=0.5, **options)
        merged.append(load_file(out))
    assert apart(*merged, load_file(runs["seq"].base_file())) < 1e-5


@pytest.mark.parametrize("strategy", ["core_space", "knots", "dop"])
def test_one_adapter_is_its_own_merge(trained, tmp_path, strategy):
    _, runs = trained
    run, options = runs["seq"], {"knots": {"density": 1}}.get(strategy, {})
    merge_checkpoints(run.base_file(), [run.encoder(1)], strategy, tmp_path / "m.safetensors", scale=1, **options)
    assert apart(load_file(tmp_path / "m.safetensors"), theta(run, 1), load_file(run.base_file())) < 1e-5


def test_an_adapter_of_another_base_is_refused(trained, tmp_path):
    _, runs = trained
    other = {name: tensor + 1 for name, tensor in load_file(runs["seq"].base_file()).items()}
    save_file(other, tmp_path / "base.safetensors")
    outcome = command(
        "merge.py", f"base={tmp_path}/base.safetensors", f"checkpoints=[{runs['seq'].task(0)}]", f"out={tmp_path}/m"
    )
    assert outcome.code == 1
    assert "a checkpoint belongs to the θ₀ that it was trained from" in outcome.err


# Reading an encoder


def test_commands_read_an_adapter_as_an_encoder(trained, tmp_path):
    root, runs = trained
    words = (f"root={root}", *WORDS, "method=seq")
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    outcome = command(
        "predict.py", *words, "encoder=2", f"images={tmp_path}", "classes=[one,two]", f"out={tmp_path}/answers.jsonl"
    )
    assert outcome.code == 0, outcome.err
    clip = tiny()
    clip.encoder.load_state_dict(theta(runs["seq"], 1))
    with torch.no_grad():
        logits = text_head(clip, [["one"], ["two"]])(clip.encoder(clip.transforms.eval(Image.fromarray(pixels))[None]))
    best = logits.softmax(-1)[0].max()
    answer = json.loads((tmp_path / "answers.jsonl").read_text().splitlines()[0])
    assert answer["classes"][0]["probability"] == pytest.approx(float(best), abs=1e-4)
    outcome = command("analyze.py", *words, "analysis=interpolation")
    assert outcome.code == 0, outcome.err


# Bad input


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("model.adapter=dora",), "model.adapter must be one of lora"),
        (("model.adapter=null",), "model.adapter_rank is for model.adapter=lora; got model.adapter_rank=4"),
        (("curvature.classes=true",), "without curvature; got curvature.classes=true"),
        (("model.adapter_rank=0",), "model.adapter_rank must be a whole number, 1 or more"),
        (("model.adapter_rank=129",), "model.adapter_rank must be at most 128, since transformer.resblocks.0.attn is"),
        (("model.adapter_alpha=0",), "model.adapter_alpha must be a number, positive"),
        (("model.adapter_targets=c_fc",), "model.adapter_targets must be a list of names of layers"),
        (("model.adapter_targets=[]",), "model.adapter_targets must be a list of names of layers"),
        (("model.adapter_targets=[c_fc,qkv]",), "layers of the image tower, which has c_fc, c_proj, in_proj; got qkv"),
        (("model.adapter_targets=[out_proj]",), "which has c_fc, c_proj, in_proj; got out_proj"),
        (("method=merged",), "works with method=seq, ind, joint, ewc and lwf, .*got method=merged"),
        (("method.average=ema",), "without averages of weights .*got method.average=ema"),
        (("curvature.fisher=true",), "without curvature; got curvature.fisher=true"),
        (("curvature.gram=true",), "without curvature; got curvature.gram=true"),
    ],
)
def test_bad_input(tmp_path, words, expected):
    outcome = command("train.py", f"root={tmp_path}", *WORDS, *words)
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert re.search(expected, line), line
    assert not list(tmp_path.rglob("config.yaml"))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_run_holds_adapters_or_encoders(trained):
    root, _ = trained
    for script in ("train.py", "merge.py"):
        outcome = command(script, f"root={root}", *WORDS, "method=seq", "model.adapter=null", "model.adapter_rank=8")
        assert outcome.code == 1
        assert "has model.adapter=lora where this command says no model.adapter" in outcome.err


@pytest.mark.parametrize("strategy", ["fisher", "regmean"])
def test_strategies_that_need_curvature_say_that_adapters_have_none(trained, strategy):
    root, _ = trained
    outcome = command("merge.py", f"root={root}", *WORDS, "method=seq", f"strategy={strategy}")
    assert outcome.code == 1
    (line,) = outcome.err.strip().splitlines()
    assert "of every task, which adapters do not have" in line
    assert "curvature." not in line


def test_a_run_without_adapters_keeps_its_config_hash():
    targets = ["in_proj", "c_fc", "c_proj"]
    now = {"adapter": None, "adapter_rank": 8, "adapter_alpha": 16, "adapter_targets": targets}
    assert config_hash({"model": {"name": "tiny", **now}}) == config_hash({"model": {"name": "tiny"}})
    assert config_hash({"model": {"name": "tiny", **now, "adapter": "lora"}}) != config_hash(
        {"model": {"name": "tiny"}}
    )
