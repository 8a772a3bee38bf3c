"""A small random model of each family of image towers, through training, merging, analysis and export."""

from __future__ import annotations

import json

import numpy as np
import open_clip
import pytest
import torch
from helpers import command, config
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import normalize

from mergestream.compose.run import run_of
from mergestream.models import pretrained as loading
from mergestream.models.clip import text_head
from mergestream.models.pretrained import pretrained
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
}


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


@pytest.fixture
def pictures(tmp_path):
    """Four classes of noise, with two training images and one test image each."""
    draw = np.random.default_rng(0)
    for split, count in (("train", 2), ("test", 1)):
        for name in ("red", "green", "blue", "grey"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(draw.integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.mark.parametrize("name", FAMILIES)
def test_inputs_of_each_family_are_trained_merged_analysed_and_exported(name, pictures, tmp_path):
    path = tmp_path / "clip.safetensors"
    model = random_weights(name, path)
    words = [f"root={tmp_path}/runs", "dataset=folder", "dataset.name=noise", f"dataset.path={pictures}", "tasks=2"]
    words += ["epochs=1", "batch_size=4", "optimizer.lr=1e-3", "schedule.warmup=0", "model=open_clip"]
    words += [f"model.architecture={name}", f"model.pretrained={path}", "accelerator=cpu"]
    outcome = command("train.py", *words, "devices=1", "logger=none")
    assert outcome.code == 0, outcome.err
    run = run_of(config("train", *words))
    base, (first, second) = load_file(run.base_file()), map(load_file, run.encoders())
    assert base.keys() == first.keys() == model.visual.state_dict().keys()
    assert sum(not torch.equal(base[key], first[key]) for key in base) > len(base) / 2

    outcome = command("merge.py", *words, "strategy=average", "export=open_clip")
    assert outcome.code == 0, outcome.err
    (folder,) = (run.path / "merges").iterdir()
    merged = load_file(folder / "merged.safetensors")
    for key in base:
        torch.testing.assert_close(merged[key], base[key] + (first[key] - base[key] + second[key] - base[key]) / 2)
    model.load_state_dict(load_file(folder / "open_clip.safetensors"))
    clip = pretrained(name, str(path))
    clip.encoder.load_state_dict(merged)
    image = clip.transforms.eval(Image.open(pictures / "test/red/0.png"))[None]
    with torch.no_grad():
        torch.testing.assert_close(normalize(clip.encoder(image)), model.encode_image(image, normalize=True))

    outcome = command("analyze.py", *words, "analysis=cosine")
    assert outcome.code == 0, outcome.err
    outcome = command("merge.py", *words, "strategy=average", "export=huggingface")
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("error: export=huggingface needs a CLIP as OpenAI built it: ")


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
