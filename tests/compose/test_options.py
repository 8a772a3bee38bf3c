"""Every YAML of every config group is composed, instantiated and called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from archives import WRITERS, accept_checksums, save
from helpers import ROOT, accuracy_of, command, config, noise, shipped
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pytorch_lightning.loggers import Logger
from safetensors.torch import save_file

from mergestream.compose.build import build, method_of
from mergestream.compose.checks import check_training
from mergestream.compose.inputs import Inputs
from mergestream.data.stream import TaskStream
from mergestream.methods.method import Method
from mergestream.models import tiny
from mergestream.models.clip import text_head
from mergestream.runtime import files
from mergestream.training import loggers

GROUPS = sorted(p.name for p in (ROOT / "configs").iterdir() if p.is_dir())


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (ROOT / "configs" / group).glob("*.yaml"))


def stream_of(cfg: DictConfig) -> TaskStream:
    """The stream of a resolved config, for the tiny CLIP."""
    inputs = Inputs(cfg)
    return inputs.stream(tiny.tiny().transforms, inputs.source())


def test_no_group_is_forgotten():
    groups = {"dataset", "logger", "method", "model", "schedule", "stream", "strategy"}
    assert set(GROUPS) == groups | {"experiment", "hydra", "analysis", "cluster", "calibration"}  # tested elsewhere


@pytest.fixture
def data_root(request, tmp_path, monkeypatch):
    """A root with the small archives that the dataset of the test needs, in the official formats."""
    accept_checksums(monkeypatch)
    node = config("train", f"dataset={request.getfixturevalue('dataset')}").dataset
    for name in node.get("datasets", [node.name]):
        if name in WRITERS:
            WRITERS[name](tmp_path)
    return tmp_path


@pytest.mark.parametrize("dataset", options("dataset"))
def test_datasets(dataset, data_root):
    values = [f"dataset={dataset}", f"data.root={data_root}", f"root={data_root}/runs", "model=tiny", "batch_size=2"]
    cfg = config("train", *values)
    OmegaConf.resolve(cfg)
    check_training(cfg)
    if cfg.stream.name == "class":
        cfg.tasks = 2  # some archives are of two classes
    stream = stream_of(cfg)
    images, labels, weights = next(iter(stream.train_dataloader()))
    assert images.dtype == torch.uint8
    assert images.shape[1:3] == (32, 32)
    assert set(labels.tolist()) <= set(stream.tasks[0].classes)
    assert weights.sum() == pytest.approx(1)
    images, *_ = next(stream.on_device(stream.eval_dataloader(), torch.device("cpu")))
    assert images.shape[1:] == (3, 32, 32)
    assert images.isfinite().all()
    assert len(stream.source.prompts) == stream.source.num_classes
    assert all(said for said in stream.source.prompts)
    for orders, count in (
        (stream.source.class_orders, stream.source.num_classes),
        (stream.source.domain_orders, len(stream.source.domain_names)),
    ):
        for order in orders.values():
            assert sorted(order) == list(range(count))
    if "domains" in cfg.dataset:
        assert len(stream.source.domain_names) == cfg.dataset.domains
    else:
        assert not stream.source.domain_names


def test_every_dataset_has_an_archive_to_be_tested_on():
    without = {"digits", "glyphs", "eight_datasets", "fourteen_datasets", "twenty_datasets", "mtil", "mtil_order_2"}
    assert set(shipped("dataset")) - without == set(WRITERS)


@pytest.mark.filterwarnings("ignore:No pretrained weights:UserWarning")
@pytest.mark.parametrize("model", options("model"))
def test_models(model, tmp_path):
    import open_clip

    node = config("train", f"model={model}").model
    if "pretrained" in node:
        # The weights themselves are large: what they are for is built without memory, and a small one is loaded.
        assert node.pretrained in open_clip.list_pretrained_tags_by_model(node.architecture)
        with torch.device("meta"):
            tower = open_clip.create_model(node.architecture, load_weights=False, device="meta").visual
            assert tower(torch.empty(1, 3, 224, 224)).shape == (1, tower.output_dim)
        small = open_clip.create_model("ViT-S-32-alt", load_weights=False).state_dict()
        save_file({name: tensor.contiguous() for name, tensor in small.items()}, tmp_path / "w.safetensors")
        overrides = ["model.architecture=ViT-S-32-alt", f"model.pretrained={tmp_path}/w.safetensors"]
    else:
        overrides = []
    clip = Inputs(config("train", f"model={model}", *overrides)).clip()
    image = clip.transforms.eval(Image.new("RGB", (40, 30), "red"))
    with torch.no_grad():
        logits = text_head(clip, [["a cat"], ["a dog"]])(clip.encoder(image[None]))
    assert logits.shape == (1, 2)


@pytest.mark.parametrize("method", options("method"))
def test_methods(method, tmp_path):
    assert isinstance(method_of(config("train", f"method={method}")), Method)
    outcome = command("train.py", f"root={tmp_path}", *noise(), f"method={method}", "epochs=1")
    assert outcome.code == 0, outcome.err
    (metrics,) = (path for path in tmp_path.rglob("metrics.json") if "merges" not in path.parts)
    (folder,) = (Path(word.partition("=")[2]) / "test" for word in noise() if word.startswith("dataset.path="))
    names = sorted(path.name for path in folder.iterdir())
    samples = [(Image.open(path), label) for label, name in enumerate(names) for path in (folder / name).iterdir()]
    prompts = [[f"a photo of a {name}."] for name in names]
    encoders = sorted(metrics.parent.rglob("encoder.safetensors"))
    expected = accuracy_of(encoders[-1] if encoders else None, *zip(*samples, strict=True), prompts)
    assert files.read_json(metrics, "summary")["summary"]["final_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("stream", options("stream"))
def test_streams(stream, tmp_path):
    suite = ["dataset=eight_datasets", "dataset.datasets=[digits]", "dataset.domains=1"]
    for name in ("train/ant/1.png", "test/ant/2.png"):
        save(tmp_path / "data/first" / name, 1, 1)
    folders = ["dataset=folder", f"dataset.path={tmp_path}/data", f"root={tmp_path}"]
    of = {"domain": ["dataset=glyphs"], "dataset": suite, "folders": folders}
    cfg = config("train", *of.get(stream, ["tasks=5"]), f"stream={stream}")
    assert cfg.stream.name == stream
    OmegaConf.resolve(cfg)
    assert len(stream_of(cfg)) == {"domain": 6, "dataset": 1, "folders": 1}.get(stream, 5)


@pytest.mark.parametrize("schedule", options("schedule"))
def test_schedules(schedule, tmp_path):
    arguments = [f"root={tmp_path}", *noise(), f"schedule={schedule}", "batch_size=8", "method=joint", "epochs=1"]
    assert command("train.py", *arguments).code == 0
    log = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    rates = [float(line.split(",")[log[0].split(",").index("lr")]) for line in log[1:]]
    assert all(0 < rate <= 3e-4 for rate in rates)
    if schedule == "paper":  # 21 steps never leave a warm-up of 500
        assert rates == sorted(rates)
        assert max(rates) <= 3e-4 * 21 / 500


@pytest.mark.parametrize("logger", options("logger"))
def test_loggers(logger, tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    node = config("train", f"logger={logger}").logger
    made = build(node, path=tmp_path, config={"seed": 5})
    if logger == "none":
        assert made is None
    else:
        assert isinstance(made, Logger)
        made.log_metrics({"loss": 0.5}, step=1)
        made.save()
    loggers.close(made)
    assert any(path.is_file() for path in tmp_path.rglob("*")) == (logger != "none")


def test_wandb_without_a_key_is_offline_and_asks_nothing(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked a question"))
    made = build(config("train", "logger=wandb").logger, path=tmp_path, config={})
    assert made._wandb_init["mode"] == "offline"
    made.log_metrics({"loss": 1.0})
    loggers.close(made)
    assert list(tmp_path.rglob("offline-run-*"))
