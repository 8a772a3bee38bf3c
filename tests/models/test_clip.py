"""The tiny CLIP, the text head, and weights from a file."""

from __future__ import annotations

import math

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from mergestream.data.source import prompts
from mergestream.data.sources.digits import digits
from mergestream.models import pretrained as loading
from mergestream.models import tiny
from mergestream.models.clip import TextHead, text_head
from mergestream.models.pretrained import pretrained
from mergestream.runtime.errors import UserError
from mergestream.runtime.files import read_tensors


def test_head_against_a_plain_loop():
    clip = tiny.tiny()
    names, templates = ["zero", "one"], ["a photo of the {}.", "a {}", "the digit {}"]
    head = text_head(clip, prompts(names, templates), batch_size=4)
    with torch.no_grad():
        for row, name in zip(head.weight_CD, names, strict=True):
            total = torch.zeros(128, dtype=torch.float64)
            for template in templates:
                features = clip.model.encode_text(tiny.tokenize([template.format(name)]))[0].double()
                total += features / math.sqrt(sum(float(x) ** 2 for x in features))
            torch.testing.assert_close(row.double(), total / total.norm(), rtol=0, atol=1e-6)
        features = torch.randn(5, 128)
        logits = head(features)
        scale = math.exp(clip.model.logit_scale.item())
        for i in range(5):
            for c in range(2):
                cosine = torch.cosine_similarity(features[i], head.weight_CD[c], dim=0)
                assert logits[i, c].item() == pytest.approx(scale * cosine.item(), abs=1e-5)


def test_restricted_head_is_a_choice_of_columns():
    head, features = TextHead(torch.randn(6, 4), 10.0), torch.randn(3, 4)
    torch.testing.assert_close(head.restrict([4, 1])(features), head(features)[:, [4, 1]])


def test_head_has_nothing_to_train():
    assert not list(TextHead(torch.randn(6, 4), 10.0).parameters())


def test_tokens_by_hand():
    tokens = tiny.tokenize(["aé"])
    assert tokens.shape == (1, 64)
    assert tokens[0, :6].tolist() == [256, 97, 0xC3, 0xA9, 257, 0]
    with pytest.raises(ValueError, match="at most 62 bytes"):
        tiny.tokenize(["x" * 63])


def test_shipped_weights_are_small_and_reach_the_target():
    assert tiny.WEIGHTS.stat().st_size < 5_000_000
    clip, source = tiny.tiny(), digits()
    head = text_head(clip, source.prompts)
    images = torch.stack([clip.transforms.eval(source.test.images[i]) for i in range(len(source.test))])
    with torch.no_grad():
        predictions = head(clip.encoder(images)).argmax(-1).numpy()
    assert (predictions == source.test.labels).mean() >= 0.55


def test_transforms_follow_the_protocol():
    clip = tiny.tiny()
    crop = clip.transforms.train.transforms[0]
    assert crop.scale == (0.9, 1.0)
    assert crop.interpolation.value == "bicubic"
    assert "Flip" not in repr(clip.transforms.train)
    image = digits().test.images[0]
    assert torch.equal(clip.transforms.eval(image), clip.transforms.eval(image))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """The weights of a small open_clip architecture, randomly initialised, in a file."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-S-32-alt", load_weights=False)
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return path, model.eval()


@pytest.mark.filterwarnings("ignore:No pretrained weights:UserWarning")
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_weights_from_a_file(checkpoint, suffix, tmp_path):
    path, model = checkpoint
    if suffix == ".pt":
        torch.save({"state_dict": {f"module.{k}": v for k, v in model.state_dict().items()}}, tmp_path / "clip.pt")
        path = tmp_path / "clip.pt"
    clip = pretrained("ViT-S-32-alt", str(path))
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(clip.encoder(images), model.visual(images))
        assert text_head(clip, [["a photo of a cat."], ["a photo of a dog."]]).weight_CD.shape == (2, 256)
    assert clip.transforms.eval(digits().test.images[0]).shape == (3, 224, 224)


def test_weights_that_do_not_fit(checkpoint, tmp_path):
    with pytest.raises(UserError, match="must hold the weights of model.architecture=ViT-B-32"):
        pretrained("ViT-B-32", str(checkpoint[0]))
    with pytest.raises(UserError, match="is not there"):
        pretrained("ViT-B-32", str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="must be one of openai, .*; got model.pretrained=nobody"):
        pretrained("ViT-B-32", "nobody")
    with pytest.raises(UserError, match=r"list_models\(\); got ViT-Z"):
        pretrained("ViT-Z", "openai")


def test_weights_without_network(monkeypatch):
    def no_network(*_):
        raise ConnectionError("no route")

    monkeypatch.setattr(loading, "_cached", lambda _: None)
    monkeypatch.setattr(loading, "_fetched", no_network)
    with pytest.raises(UserError, match="model.pretrained=/path/to/open_clip_model.safetensors.*model=tiny needs no"):
        pretrained("ViT-B-16-quickgelu", "openai")


class Bomb:
    def __reduce__(self):
        return (print, ("this pickle ran code",))


def test_a_pickle_is_never_run(tmp_path, capsys):
    torch.save({"weight": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(UserError, match="tensors-only"):
        read_tensors(tmp_path / "bomb.pt")
    assert "ran code" not in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:No pretrained weights:UserWarning")
def test_residual_networks_have_one_number_for_their_size(tmp_path, monkeypatch):
    def small(name, **options):
        model = open_clip.CLIP(
            embed_dim=8,
            vision_cfg={"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
            text_cfg={"context_length": 77, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
        )
        open_clip.set_model_preprocess_cfg(model, {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)})
        return model

    monkeypatch.setattr(loading.open_clip, "create_model", small)
    save_file({k: v.contiguous() for k, v in small("RN50").state_dict().items()}, tmp_path / "w.safetensors")
    transforms = pretrained("RN50", str(tmp_path / "w.safetensors")).transforms
    assert transforms.eval(digits().test.images[0]).shape == (3, 32, 32)
