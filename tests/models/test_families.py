"""A small random model of each family of image towers, through training, merging, analysis and export."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from helpers import command, config
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.eva import _create_eva
from torch import nn
from torch.nn.functional import normalize

from mergestream.classifier.classifier import Classifier
from mergestream.classifier.folder import write_classifier
from mergestream.compose.run import run_of
from mergestream.merging.export import export
from mergestream.models import pretrained as loading
from mergestream.models.clip import text_head
from mergestream.models.pretrained import pretrained
from mergestream.models.statistics import measured_statistics
from mergestream.runs.directory import Run
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:No pretrained weights:UserWarning")

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
VIT = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
FAMILIES = {
    "small-CoCa": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2},
    },
    "small-Sig": {  # open_clip downloads the tokenizer of a model that is named SigLIP
        "embed_dim": 64,
        "init_logit_bias": -10,
        "custom_text": True,
        "vision_cfg": {"image_size": 160, "timm_model_name": "test_vit", "timm_pool": "map", "timm_proj": "none"},
        "text_cfg": {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
    },
    "small-ConvNeXt": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "timm_model_name": "test_convnext2", "timm_pool": ""},
        "text_cfg": TEXT,
    },
    "small-EVA": {
        "embed_dim": 16,
        "custom_text": True,
        "vision_cfg": {"image_size": 32, "timm_model_name": "small_eva", "timm_pool": "token", "timm_proj": None},
        "text_cfg": TEXT,
    },
    "small-ResNet": {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
        "text_cfg": TEXT,
    },
}


@register_model
def small_eva(pretrained: bool = False, **options):
    """The smallest EVA of timm has 5.5 M parameters; this one has what makes it an EVA, and 0.04 M."""
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2}
    eva = {"swiglu_mlp": True, "use_rot_pos_emb": True, "ref_feat_shape": (4, 4)}
    return _create_eva("small_eva", pretrained, **size, **eva, **options)


@pytest.fixture(scope="module", autouse=True)
def architectures(tmp_path_factory):
    """Make open_clip know the `FAMILIES`."""
    folder = tmp_path_factory.mktemp("families")
    for name, settings in FAMILIES.items():
        (folder / f"{name}.json").write_text(json.dumps(settings))
    open_clip.add_model_config(folder)


def random_weights(name, path):
    torch.manual_seed(0)
    model = open_clip.create_model(name, load_weights=False).eval()
    save_file({name: tensor.clone().contiguous() for name, tensor in model.state_dict().items()}, path)
    return model


@dataclass(frozen=True)
class Family:
    """A random model, its file, the words of its training on noise, and the run."""

    model: nn.Module
    path: Path
    words: list[str]
    run: Run


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Four classes of noise, with two training images and one test image each."""
    draw, top = np.random.default_rng(0), tmp_path_factory.mktemp("noise")
    for split, count in (("train", 2), ("test", 1)):
        for name in ("red", "green", "blue", "grey"):
            folder = top / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draw.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return top


@pytest.fixture(scope="module")
def trained(pictures, tmp_path_factory):
    """Families by name, each trained once for two tasks."""
    found: dict[str, Family] = {}

    def get(name: str) -> Family:
        if name not in found:
            folder = tmp_path_factory.mktemp(name)
            path = folder / "clip.safetensors"
            model = random_weights(name, path)
            words = [f"root={folder}/runs", "dataset=folder", "dataset.name=noise", f"dataset.path={pictures}"]
            words += ["tasks=2", "epochs=1", "batch_size=4", "optimizer.lr=1e-3", "schedule.warmup=0"]
            words += ["model=open_clip", f"model.architecture={name}", f"model.pretrained={path}", "accelerator=cpu"]
            outcome = command("train.py", *words, "devices=1", "logger=none")
            assert outcome.code == 0, outcome.err
            found[name] = Family(model, path, words, run_of(config("train", *words)))
        return found[name]

    return get


def merged(family: Family, *words: str) -> dict[str, torch.Tensor]:
    """The weights of the last task's merge with `words`."""
    before = set(family.run.path.glob("merges/*"))
    outcome = command("merge.py", *family.words, *words)
    assert outcome.code == 0, outcome.err
    (folder,) = set(family.run.path.glob("merges/*")) - before
    return load_file(folder / "merged.safetensors")


@pytest.mark.parametrize("name", FAMILIES)
def test_inputs_of_each_family_are_trained_merged_analysed_and_exported(name, trained, pictures, tmp_path):
    family = trained(name)
    model, run = family.model, family.run
    base, (first, second) = load_file(run.base_file()), map(load_file, run.encoders())
    assert base.keys() == first.keys() == model.visual.state_dict().keys()
    assert sum(not torch.equal(base[key], first[key]) for key in base) > len(base) / 2

    average = merged(family, "strategy=average", "export=open_clip")
    for key in base:
        expected = base[key] if base[key].dtype == torch.int64 else (first[key] + second[key]) / 2
        torch.testing.assert_close(average[key], expected)
    model.load_state_dict(load_file(run.path / "merges/average-1/open_clip.safetensors"))
    clip = pretrained(name, str(family.path))
    clip.encoder.load_state_dict(average)
    image = clip.transforms.eval(Image.open(pictures / "test/red/0.png"))[None]
    with torch.no_grad():
        torch.testing.assert_close(normalize(clip.encoder(image)), model.encode_image(image, normalize=True))

    outcome = command("analyze.py", *family.words, "analysis=cosine")
    assert outcome.code == 0, outcome.err
    with pytest.raises(UserError, match="export=huggingface needs a CLIP as OpenAI built it: "):
        export(clip, average, "huggingface", tmp_path)


class PlainNorm(nn.Module):
    """Batch normalisation as an equation, in float64; remembers the statistics of each batch."""

    def __init__(self, layer: nn.BatchNorm2d):
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight.double(), layer.bias.double(), layer.eps
        self.seen: list[tuple[int, torch.Tensor, torch.Tensor]] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        channels = x.transpose(0, 1).flatten(1)
        mean, squares = channels.mean(1), (channels - channels.mean(1, keepdim=True)).square().sum(1)
        count = channels.shape[1]
        self.seen.append((len(x), mean, squares / (count - 1)))
        shape = (1, -1, 1, 1)
        normed = (x - mean.view(shape)) / (squares / count + self.eps).sqrt().view(shape)
        return normed * self.weight.view(shape) + self.bias.view(shape)


def plain_statistics(encoder: nn.Module, batches: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Running statistics from a plain loop in float64 over the batches; every image counts the same."""
    encoder = encoder.double()
    plain = {name: PlainNorm(m) for name, m in encoder.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, layer in plain.items():
        encoder.set_submodule(name, layer)
    with torch.no_grad():
        for images in batches:
            encoder(images.double())
    total = sum(map(len, batches))
    found = {}
    for name, layer in plain.items():
        found[f"{name}.running_mean"] = sum(n * mean for n, mean, _ in layer.seen) / total
        found[f"{name}.running_var"] = sum(n * var for n, _, var in layer.seen) / total
    return found


def resnet(path, theta=None):
    random_weights("small-ResNet", path)
    encoder = pretrained("small-ResNet", str(path)).encoder
    if theta:
        encoder.load_state_dict(theta)
    return encoder


def test_inputs_of_batch_normalisation_are_measured_as_in_a_plain_loop(tmp_path):
    batches = list(torch.randn(13, 3, 32, 32).add(0.3).split([4, 4, 5]))
    encoder = resnet(tmp_path / "clip.safetensors")
    found = measured_statistics(encoder, batches)
    assert all(torch.equal(encoder.state_dict()[name], tensor) for name, tensor in found.items())
    assert {m.momentum for m in encoder.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    assert not any(m.training for m in encoder.modules())
    expected = plain_statistics(resnet(tmp_path / "clip.safetensors"), batches)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name].double(), value, rtol=1e-4, atol=1e-5)


def test_inputs_of_batch_normalisation_have_the_statistics_that_bn_names(trained, pictures, tmp_path):
    family = trained("small-ResNet")
    base, (first, second) = load_file(family.run.base_file()), map(load_file, family.run.encoders())
    statistics = [name for name in base if name.endswith(("running_mean", "running_var"))]
    others = base.keys() - statistics
    scaled = ["strategy=task_arithmetic", "lambda=1.5"]  # extrapolated, a variance would be negative
    average = merged(family, *scaled)
    kept = merged(family, *scaled, "bn=base")
    measured = merged(family, *scaled, "bn=recompute", "prefixes=true")
    for name in statistics:
        torch.testing.assert_close(average[name], (first[name] + second[name]) / 2)
        assert torch.equal(kept[name], base[name])
    assert all(torch.equal(average[name], kept[name]) and torch.equal(average[name], measured[name]) for name in others)

    clip = pretrained("small-ResNet", str(family.path))
    images = [clip.transforms.eval(Image.open(path).convert("RGB")) for path in pictures.glob("train/*/*")]
    expected = plain_statistics(resnet(tmp_path / "clip.safetensors", average), [torch.stack(images)])
    for name, value in expected.items():
        torch.testing.assert_close(measured[name].double(), value, rtol=1e-4, atol=1e-5)
    folder = family.run.path / "merges/task_arithmetic-bn=recompute-1.5"
    record = json.loads((folder / "metrics.json").read_text())
    assert (record["merge"]["changed"], record["merge"]["options"]) == ({"bn": "recompute"}, {})
    assert len(record["accuracy"]["task_agnostic"]) == 2
    assert "already merged" in command("merge.py", *family.words, *scaled, "bn=recompute").out


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (["base=B.pt", "checkpoints=[A.pt]", "out=M.pt"], "bn=recompute takes the training images of a run; base, "),
        (["bn=all"], "bn must be one of average, base, recompute; got bn=all"),
    ],
)
def test_inputs_with_no_images_to_recompute_statistics_on_are_refused(words, rule):
    outcome = command("merge.py", "bn=recompute", *words)
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert outcome.err.startswith(f"error: {rule}")


def test_inputs_without_batch_normalisation_have_no_statistics(trained):
    outcome = command("merge.py", *trained("small-ConvNeXt").words, "bn=recompute")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1] == (
        "error: bn=recompute is for image towers with batch normalisation; model=open_clip-small-ConvNeXt has none. "
        "Leave it out"
    )


def test_inputs_of_a_run_that_an_earlier_version_started_go_on(trained, tmp_path):
    """Its config.yaml has no model.preprocess, and its base.json no preprocessing; the null changes nothing."""
    family = trained("small-ResNet")
    shutil.copytree(family.run.root, tmp_path / "runs")
    words = [*family.words, f"root={tmp_path}/runs"]
    run = run_of(config("train", *words))
    before = load_file(run.encoder(1))
    shutil.rmtree(run.task(1))
    run.metrics.unlink()
    old, base = run.config(), run.base()
    assert old["model"].pop("preprocess", "missing") is None
    run.claim(old)
    del base["preprocessing"]
    files.write_json(run.path / "base.json", base)
    outcome = command("train.py", *words, "devices=1", "logger=none")
    assert outcome.code == 0, outcome.err
    assert not old.keys() ^ run.config().keys()
    assert "preprocess" not in run.config()["model"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(run.encoder(1)).items())
    assert "already finished" in command("train.py", *words, "devices=1", "logger=none").out
    assert command("merge.py", *words, "strategy=magmax").code == 0


def test_inputs_of_siglip_keep_their_logit_bias(tmp_path):
    model = random_weights("small-Sig", tmp_path / "clip.safetensors")
    clip = pretrained("small-Sig", str(tmp_path / "clip.safetensors"))
    head = text_head(clip, [["a cat"], ["a dog"]])
    image, tokens = torch.randn(1, 3, 160, 160), clip.tokenize(["a cat", "a dog"])
    with torch.no_grad():
        logits, _ = model.get_logits(image, tokens)
        torch.testing.assert_close(head(clip.encoder(image)), logits)
        assert head.restrict([1])(clip.encoder(image)).item() == pytest.approx(logits[0, 1].item(), abs=1e-4)


def test_inputs_without_their_tokenizer_end_in_one_line(monkeypatch, tmp_path):
    def offline(*_, **__):
        raise OSError("We couldn't connect to the Hub\nto load the files")

    random_weights("small-Sig", tmp_path / "clip.safetensors")
    monkeypatch.setattr(loading.open_clip, "get_tokenizer", offline)
    with pytest.raises(UserError) as caught:
        pretrained("ViT-B-16-SigLIP", str(tmp_path / "clip.safetensors"))
    assert str(caught.value) == (
        "model.architecture=ViT-B-16-SigLIP needs the tokenizer timm/ViT-B-16-SigLIP from the Hugging Face Hub, which "
        "is not in the cache and cannot be loaded (We couldn't connect to the Hub). On a machine with network access, "
        "type: hf download timm/ViT-B-16-SigLIP; then copy its folder of ~/.cache/huggingface/hub here. "
        "model=tiny needs no download."
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_an_exported_classifier_builds_the_tower_alone(name, tmp_path, monkeypatch):
    random_weights(name, tmp_path / "w.safetensors")
    clip = pretrained(name, str(tmp_path / "w.safetensors"))
    head = text_head(clip, [["a cat"], ["a dog"]])
    made = Classifier.of(clip, head, ["cat", "dog"], [["a cat"], ["a dog"]], model={})
    write_classifier(made, clip.encoder.state_dict(), tmp_path / "classifier")
    (tmp_path / "w.safetensors").unlink()
    monkeypatch.setattr(open_clip, "get_model_config", None)  # the architecture is in the folder
    loaded = Classifier.load(tmp_path / "classifier")
    size = loaded.transforms.recipe.size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.logits(images), made.logits(images))
    assert loaded.transforms.recipe == clip.transforms.recipe
