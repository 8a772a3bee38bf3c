"""Every YAML of every config group is composed, instantiated and called."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from helpers import ROOT, command, config
from pytorch_lightning.loggers import Logger
from safetensors.torch import save_file

from mergestream import files
from mergestream.compose import build, load_clip, load_stream
from mergestream.methods.method import Method
from mergestream.models import tiny
from mergestream.models.clip import text_head
from mergestream.training import loggers

GROUPS = sorted(p.name for p in (ROOT / "configs").iterdir() if p.is_dir())


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (ROOT / "configs" / group).glob("*.yaml"))


def test_no_group_is_forgotten():
    assert set(GROUPS) == {"dataset", "logger", "method", "model", "schedule", "stream", "strategy"}


def write_cifar100(root):
    """CIFAR100's python archive, with one training and one test image of each class."""
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    names = [f"class_{c:02d}" for c in range(100)]
    for split in ("train", "test"):
        data = np.random.default_rng(0).integers(0, 256, (100, 3072), dtype=np.uint8)
        (folder / split).write_bytes(pickle.dumps({"data": data, "fine_labels": list(range(100))}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))


@pytest.fixture
def data_root(tmp_path, monkeypatch):
    """A root with small archives in the official formats."""
    import torchvision

    write_cifar100(tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    return tmp_path


@pytest.mark.parametrize("dataset", options("dataset"))
def test_datasets(dataset, data_root):
    cfg = config("train", f"dataset={dataset}", f"data.root={data_root}", "model=tiny", "batch_size=4")
    stream = load_stream(cfg, tiny.tiny().transforms)
    images, labels, weights = next(iter(stream.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert set(labels.tolist()) <= set(stream.tasks[0].classes)
    assert weights.sum() == pytest.approx(1)
    images, *_ = next(iter(stream.eval_dataloader()))
    assert images.isfinite().all()
    assert len(stream.source.prompts) == stream.source.num_classes
    assert all(said for said in stream.source.prompts)
    assert len(set(stream.source.class_names)) == stream.source.num_classes
    for order in stream.source.class_orders.values():
        assert sorted(order) == list(range(stream.source.num_classes))


@pytest.mark.filterwarnings("ignore:No pretrained weights:UserWarning")
@pytest.mark.parametrize("model", options("model"))
def test_models(model, tmp_path):
    import open_clip

    node = config("train", f"model={model}").model
    overrides = [f"model={model}"]
    if "pretrained" in node:
        weights = open_clip.create_model(node.architecture, load_weights=False).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, tmp_path / "w.safetensors")
        overrides.append(f"model.pretrained={tmp_path}/w.safetensors")
    clip = load_clip(config("train", *overrides))
    image = clip.transforms.eval(config_image())
    with torch.no_grad():
        logits = text_head(clip, [["a cat"], ["a dog"]])(clip.encoder(image[None]))
    assert logits.shape == (1, 2)


def config_image():
    from PIL import Image

    return Image.new("RGB", (40, 30), "red")


@pytest.mark.parametrize("method", options("method"))
def test_methods(method, tmp_path):
    assert isinstance(build(config("train", f"method={method}").method), Method)
    outcome = command("train.py", f"root={tmp_path}", f"method={method}", "tasks=2", "epochs=1")
    assert outcome.code == 0, outcome.err
    (metrics,) = tmp_path.rglob("metrics.json")
    assert 0 < files.read_json(metrics, "summary")["summary"]["final_accuracy"] <= 1


@pytest.mark.parametrize("stream", options("stream"))
def test_streams(stream):
    cfg = config("train", f"stream={stream}", "tasks=5")
    assert cfg.stream.name == stream
    assert len(load_stream(cfg, tiny.tiny().transforms)) == 5


@pytest.mark.parametrize("schedule", options("schedule"))
def test_schedules(schedule, tmp_path):
    arguments = [f"root={tmp_path}", f"schedule={schedule}", "method=joint", "epochs=1", "logger=csv"]
    assert command("train.py", *arguments).code == 0
    log = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    rates = [float(line.split(",")[log[0].split(",").index("lr")]) for line in log[1:]]
    assert all(0 < rate <= 3e-4 for rate in rates)
    if schedule == "paper":  # 22 steps never leave a warm-up of 500
        assert rates == sorted(rates)
        assert max(rates) <= 3e-4 * 22 / 500


@pytest.mark.parametrize("logger", options("logger"))
def test_loggers(logger, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    node = config("train", f"logger={logger}").logger
    made = build(node, path=tmp_path, config={"seed": 5})
    assert isinstance(made, Logger) or logger == "none"
    if made is not None:
        made.log_metrics({"loss": 0.5}, step=1)
        made.save()
        loggers.close(made)
        written = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert written


def test_wandb_without_a_key_is_offline_and_asks_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    made = build(config("train", "logger=wandb").logger, path=tmp_path, config={})
    assert made._wandb_init["mode"] == "offline"
    made.log_metrics({"loss": 1.0})
    loggers.close(made)
    assert list(tmp_path.rglob("offline-run-*"))
