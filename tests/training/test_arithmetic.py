"""How a run computes: precision, compiler, fused optimizer, and what is recorded of them."""

from __future__ import annotations

import functools

import pytest
import torch
from helpers import command, config, files_below, noise

from mergestream import evaluation
from mergestream.compose.run import run_of
from mergestream.compose.training import training_settings
from mergestream.models.clip import TextHead
from mergestream.runtime import files, precision
from mergestream.runtime.errors import UserError
from mergestream.training import arithmetic

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def settings(*overrides: str):
    return training_settings(config("train", *noise(), *overrides))


@pytest.fixture
def gpu(monkeypatch):
    """(compute capability, name) → a GPU of this kind, as torch describes it."""

    def make(major: int, bfloat16: bool = True) -> torch.device:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (major, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bfloat16)
        monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
        return GPU

    return make


def test_auto_goes_by_hardware_and_size(gpu, monkeypatch):
    assert precision.choose(gpu(9), 10**9)[0] == "bf16-mixed"
    assert precision.choose(gpu(9), 1000)[0] == "32-true"
    assert precision.choose(gpu(7), 10**9)[0] == "32-true"
    for fast, parameters, expected in (
        (True, 86_000_000, "bf16-mixed"),
        (True, 10**6, "32-true"),
        (False, 10**9, "32-true"),
    ):
        for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"):
            monkeypatch.setattr(torch.cpu, name, lambda fast=fast: fast, raising=False)
        assert precision.choose(CPU, parameters)[0] == expected


def test_what_a_device_cannot_do_is_refused(gpu):
    with pytest.raises(UserError, match=r"precision=bf16-mixed needs a GPU with bfloat16; A GPU has none. Write"):
        arithmetic.decide(settings("precision=bf16-mixed"), gpu(6, bfloat16=False), torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="optimizer.fused=null"):
        arithmetic.decide(settings("precision=16-mixed", "optimizer.fused=true"), gpu(9), torch.nn.Linear(1, 1))


def test_16_mixed_on_a_cpu_is_one_line(tmp_path):
    outcome = command("train.py", f"root={tmp_path}", *noise(), "precision=16-mixed", "accelerator=cpu")
    assert (outcome.code, len(outcome.err.strip().splitlines())) == (1, 1)
    assert "precision=16-mixed needs a GPU; here it is cpu. Write precision=bf16-mixed or 32-true" in outcome.err
    assert not list(tmp_path.rglob("base.json"))


def test_a_run_keeps_the_precision_that_auto_chose(tmp_path, monkeypatch):
    arguments = (f"root={tmp_path}", *noise(), "method=zeroshot", "accelerator=cpu")
    monkeypatch.setattr(arithmetic, "choose", lambda *_: ("bf16-mixed", "it is fast"))
    outcome = command("train.py", *arguments)
    assert outcome.code == 0, outcome.err
    assert "precision=auto takes bf16-mixed: it is fast" in outcome.out
    run = run_of(config("train", *arguments))
    base, provenance = files.read_json(run.path / "base.json"), files.read_json(run.metrics)["provenance"]
    assert base["begun"]["precision"] == provenance["precision"] == provenance["eval_precision"] == "bf16-mixed"
    assert {run.config()[key] for key in ("precision", "eval_precision")} == {"bf16-mixed"}
    # Continued where auto would choose something else:
    monkeypatch.undo()
    run.metrics.unlink()
    assert command("train.py", *arguments).code == 0
    assert files.read_json(run.metrics)["provenance"]["precision"] == "bf16-mixed"
    run.metrics.unlink()
    outcome = command("train.py", *arguments, "precision=32-true")
    assert "has precision=bf16-mixed where this command says precision=32-true" in outcome.err


def test_a_run_from_before_these_keys_is_continued(tmp_path):
    arguments = (f"root={tmp_path}", *noise(), "method=zeroshot")
    assert command("train.py", *arguments).code == 0
    run = run_of(config("train", *arguments))
    known, stamp = run.config(), run.stamp(run.config())
    new = ("eval_precision", "compile", "accumulate", "threads", "evaluate", "activation_checkpointing")
    former = {key: value for key, value in known.items() if key not in new}
    del former["optimizer"]["fused"]
    assert run.stamp(former) == stamp
    assert run.stamp({**known, "accumulate": 2}) != stamp
    run.claim(former)
    run.metrics.unlink()
    assert command("train.py", *arguments).code == 0


def test_bf16_trains_and_merges_in_what_is_recorded(tmp_path):
    arguments = (f"root={tmp_path}", *noise(), "epochs=1", "precision=bf16-mixed")
    outcome = command("train.py", *arguments, "accumulate=3", "activation_checkpointing=true", "method=ewc")
    assert outcome.code == 0, outcome.err
    run = run_of(config("train", *arguments, "method=ewc"))
    assert {tensor.dtype for tensor in files.read_tensors(run.encoder(0)).values()} == {torch.float32}
    assert command("merge.py", *noise(), f"root={tmp_path}", "method=ewc").code == 0
    merged = files.read_json(run.path / "merges/magmax-0.5/metrics.json")
    assert merged["provenance"]["eval_precision"] == merged["provenance"]["precision"] == "bf16-mixed"


def test_evaluation_has_the_precision_it_is_given(monkeypatch):
    seen = []

    class Encoder(torch.nn.Linear):
        def forward(self, images):
            features = super().forward(images)
            seen.append(features.dtype)
            return features

    class Stream:
        tasks = ()
        source = type("Source", (), {"num_classes": 3})

        def on_device(self, batches, device):
            return batches

        def eval_dataloader(self, *_):
            return [(torch.ones(2, 4), torch.zeros(2, dtype=torch.long), torch.zeros(2, dtype=torch.long))]

    class Counting:
        def __init__(self, *_):
            self.logits = []

        def to(self, _):
            return self

        def update(self, logits, *_):
            seen.append(logits.dtype)

        def compute(self):
            return {}

    monkeypatch.setattr(evaluation, "TaskAccuracy", Counting)
    for name in ("32-true", "bf16-mixed"):
        evaluation.evaluate(
            Encoder(4, 4), TextHead(torch.randn(3, 4), 3.0), Stream(), seen=0, device=CPU, precision=name
        )
    assert seen == [torch.float32, torch.float32, torch.bfloat16, torch.float32]


def test_the_head_keeps_its_precision_under_autocast():
    head, features = TextHead(torch.nn.functional.normalize(torch.randn(50, 16)), 100.0), torch.randn(8, 16)
    with torch.autocast("cpu", torch.bfloat16):
        inside = head(features)
    assert torch.equal(inside, head(features))


def test_the_optimizer_is_fused_under_bf16_alone():
    for words, fused in (
        (["precision=32-true"], None),
        (["precision=bf16-mixed"], True),
        (["precision=bf16-mixed", "optimizer.fused=false"], None),
        (["precision=32-true", "optimizer.fused=true"], True),
        (["precision=bf16-mixed", "optimizer._target_=torch.optim.RMSprop"], None),
    ):
        optimizer = arithmetic.optimizer_of(settings(*words).fit)([torch.zeros(1, requires_grad=True)])
        assert optimizer.defaults.get("fused") is fused


def test_channels_last_is_for_convolutions_in_16_bits_on_a_gpu():
    tower, vit = (torch.nn.Sequential(*[torch.nn.Conv2d(1, 1, 1)] * n) for n in (1, 1))
    tower.append(torch.nn.Conv2d(1, 1, 1))
    assert arithmetic.channels_last_pays(tower, GPU, "bf16-mixed")
    for encoder, device, name in ((vit, GPU, "bf16-mixed"), (tower, CPU, "bf16-mixed"), (tower, GPU, "32-true")):
        assert not arithmetic.channels_last_pays(encoder, device, name)


def test_compile_where_there_is_no_compiler(gpu, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("no compiler found\nin any place")

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(arithmetic, "LARGE", 1)
    monkeypatch.setattr(precision, "LARGE", 1)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: None)
    device, encoder = gpu(9), torch.nn.Linear(1, 1)
    with pytest.raises(
        UserError, match="compile=true needs a compiler that torch.compile can use: no compiler found. Write"
    ):
        arithmetic.decide(settings("compile=true"), device, encoder)
    decided, said = arithmetic.decide(settings(), device, encoder)
    assert decided.config["compile"] is False
    assert said[-1] == "compile=auto does not: no compiler found"
    monkeypatch.setattr(torch, "compile", lambda function: lambda _: None)
    decided, said = arithmetic.decide(settings(), device, encoder)
    assert decided.config["compile"] is decided.fit.compile is True
    assert said[-1] == "compile=auto compiles the image tower"
    assert arithmetic.decide(settings("precision=32-true"), device, encoder)[0].fit.compile is False


def test_the_encoder_is_compiled_once_for_all_tasks(tmp_path, monkeypatch):
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counting))
    outcome = command("train.py", f"root={tmp_path}", *noise(), "epochs=1", "compile=true", "method=lwf")
    assert outcome.code == 0, outcome.err
    per_size = len([g for g in graphs if len(list(g.graph.nodes)) > 20])
    assert per_size <= 2  # of whole batches, and of the last batch of an epoch


def test_towers_that_cannot_compute_activations_again(tmp_path):
    from open_clip.modified_resnet import ModifiedResNet

    plain = ModifiedResNet([1, 1, 1, 1], 8, 1, image_size=32, width=8)
    for tower in (plain, torch.nn.Linear(1, 1)):
        with pytest.raises(UserError, match="activation_checkpointing=true needs an image tower of transformer blocks"):
            arithmetic.require_checkpointing(tower)
    assert not files_below(tmp_path)


def test_threads(tmp_path):
    before = torch.get_num_threads()
    try:
        assert command("train.py", f"root={tmp_path}", *noise(), "method=zeroshot", "threads=3").code == 0
        (metrics,) = tmp_path.rglob("metrics.json")
        found = files.read_json(metrics)
        assert found["environment"]["threads"] == found["provenance"]["begun"]["environment"]["threads"] == 3
    finally:
        torch.set_num_threads(before)
