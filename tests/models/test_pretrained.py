"""CLIP models with weights from a file: loading, errors, and a whole run with a vision transformer."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from helpers import command, config
from PIL import Image
from safetensors.torch import load_file, save_file

from mergestream.compose.run import run_of
from mergestream.data.sources.digits import digits
from mergestream.models import pretrained as loading
from mergestream.models.clip import text_head
from mergestream.models.pretrained import pretrained
from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_json, read_tensors

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
# ViT-B/16 with QuickGELU, as OpenAI trained it, but narrower and with fewer layers.
VISION = {"image_size": 224, "layers": 4, "width": 64, "head_width": 32, "patch_size": 16}
ARCHITECTURES = {
    "small-ViT-16-quickgelu": {"embed_dim": 32, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "small-ViT-16-wide": {"embed_dim": 64, "quick_gelu": True, "vision_cfg": VISION, "text_cfg": TEXT},
    "small-RN": {"embed_dim": 8, "vision_cfg": {"image_size": 32, "layers": [1] * 4, "width": 8}, "text_cfg": TEXT},
}


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    """Make open_clip know the `ARCHITECTURES`."""
    folder = tmp_path_factory.mktemp("architectures")
    for name, settings in ARCHITECTURES.items():
        (folder / f"{name}.json").write_text(json.dumps(settings))
    open_clip.add_model_config(folder)


def random_weights(name, path):
    """A model with random weights, which are also written to a file."""
    torch.manual_seed(0)
    model = open_clip.create_model(name, load_weights=False).eval()
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return model


@pytest.fixture
def small(tmp_path):
    """The name of a small vision transformer, a model, and the path of its weights."""
    name, path = "small-ViT-16-quickgelu", tmp_path / "clip.safetensors"
    return name, random_weights(name, path), path


pytestmark = pytest.mark.filterwarnings("ignore:No pretrained weights:UserWarning")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file(small, suffix, tmp_path):
    name, model, path = small
    if suffix == ".pt":
        path = tmp_path / "clip.pt"
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, path)
    clip = pretrained(name, str(path))
    assert clip.source == f"{name}/{path}"
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(clip.encoder(images), model.visual(images))
        head = text_head(clip, [["a photo of a cat."], ["a photo of a dog."]])
        tokens = open_clip.get_tokenizer(name)(["a photo of a cat.", "a photo of a dog."])
        torch.testing.assert_close(head.weight_CD, model.encode_text(tokens, normalize=True))
    assert clip.transforms.eval(digits().test.images[0]).shape == (3, 224, 224)


def test_errors_for_unknown_names_and_weights_that_do_not_fit(small, tmp_path):
    name, _, path = small
    with pytest.raises(UserError) as caught:
        pretrained("small-ViT-16-wide", str(path))
    rule = f"model.pretrained={path} must hold the weights of model.architecture=small-ViT-16-wide"
    assert str(caught.value) == f"{rule}; 2 tensors do not fit, the first is text_projection"
    with pytest.raises(UserError, match="^.*none.safetensors (is not there|does not exist)"):
        pretrained(name, str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="^model.pretrained must be one of openai, .*; got model.pretrained=nobody$"):
        pretrained("ViT-B-32", "nobody")
    rule = r"model.architecture must be a name from open_clip.list_models\(\)"
    with pytest.raises(UserError, match=f"^{rule}; got ViT-Z. model=tiny needs no download.$"):
        pretrained("ViT-Z", "openai")


def test_error_without_network_says_what_to_download(monkeypatch):
    def no_network(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(loading, "_cached", lambda _: None)
    monkeypatch.setattr(loading, "_fetched", no_network)
    with pytest.raises(UserError) as caught:
        pretrained("ViT-B-16-quickgelu", "openai")
    assert str(caught.value) == (
        "the weights openai of ViT-B-16-quickgelu must be downloaded once, which failed (ConnectionError). Fetch "
        "timm/vit_base_patch16_clip_224.openai/open_clip_model.safetensors from the Hugging Face Hub on a machine with "
        "network access, copy it here, and write model.pretrained=/path/to/open_clip_model.safetensors "
        "model.preprocess=openai. model=tiny needs no download."
    )


class Bomb:
    def __reduce__(self):
        return (print, ("this pickle ran code",))


def test_pickled_code_is_never_run(tmp_path, capsys):
    torch.save({"weight": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match="must hold only tensors"):
        read_tensors(tmp_path / "bomb.pt")
    assert "ran code" not in capsys.readouterr().out


def test_transforms_of_a_residual_network_have_its_image_size(tmp_path):
    random_weights("small-RN", tmp_path / "clip.safetensors")
    transforms = pretrained("small-RN", str(tmp_path / "clip.safetensors")).transforms
    assert transforms.eval(digits().test.images[0]).shape == (3, 32, 32)


def test_small_vision_transformer_differs_from_the_papers_in_size_alone():
    settings = open_clip.get_model_config(config("train", "dataset=cifar100").model.architecture)
    assert settings["quick_gelu"]
    size = {"layers": 12, "width": 768}
    assert settings["vision_cfg"] == {k: v for k, v in VISION.items() if k != "head_width"} | size
    assert settings["text_cfg"].keys() == TEXT.keys()


@pytest.fixture
def colours(tmp_path):
    """A folder dataset of four colours, with two training images and one test image each."""
    for split, count in (("train", 2), ("test", 1)):
        for number, name in enumerate(("red", "green", "blue", "grey")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.full((60, 50, 3), 40 * number + 20 * i, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


def test_vision_transformer_from_a_file_is_trained_merged_and_evaluated(small, colours, tmp_path):
    name, model, path = small
    words = [f"root={tmp_path}/runs", "dataset=folder", "dataset.name=colours", f"dataset.path={colours}", "tasks=2"]
    words += ["epochs=1", "batch_size=4", "optimizer.lr=1e-3", "schedule.warmup=0"]  # one optimizer step per task
    words += [f"model.architecture={name}", f"model.pretrained={path}"]
    outcome = command("train.py", *words, "accelerator=cpu", "devices=1")
    assert outcome.code == 0, outcome.err
    run = run_of(config("train", *words))
    base, (first, second) = load_file(run.base_file()), map(load_file, run.encoders())
    assert first.keys() == base.keys() == model.visual.state_dict().keys()
    assert not torch.equal(first["conv1.weight"], base["conv1.weight"])
    assert not torch.equal(second["conv1.weight"], first["conv1.weight"])

    outcome = command("merge.py", *words, "accelerator=cpu")
    assert outcome.code == 0, outcome.err
    merged = load_file(run.path / "merges/magmax-0.5/merged.safetensors")
    weight = "transformer.resblocks.3.mlp.c_fc.weight"
    taus = torch.stack([first[weight] - base[weight], second[weight] - base[weight]])
    largest = torch.where(taus[1].abs() >= taus[0].abs(), taus[1], taus[0])
    torch.testing.assert_close(merged[weight], base[weight] + 0.5 * largest, rtol=0, atol=1e-7)

    clip = pretrained(name, str(path))
    clip.encoder.load_state_dict(merged)
    classes = sorted(p.name for p in (colours / "test").iterdir())
    images = [clip.transforms.eval(Image.open(colours / "test" / c / "0.png").convert("RGB")) for c in classes]
    with torch.no_grad():
        head = text_head(clip, [[f"a photo of a {c}."] for c in classes])
        correct = head(clip.encoder(torch.stack(images))).argmax(-1) == torch.arange(4)
    metrics = read_json(run.path / "merges/magmax-0.5/metrics.json", "summary", "test_samples")
    assert metrics["test_samples"] == [2, 2]
    assert metrics["summary"]["final_accuracy"] == correct.float().mean().item()
