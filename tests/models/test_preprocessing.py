"""The preprocessing and the activation of open_clip's tags."""

from __future__ import annotations

import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg, list_pretrained
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torchvision.transforms import InterpolationMode

from mergestream.models import pretrained as loading
from mergestream.models.pretrained import PREPROCESSING, preprocessing
from mergestream.models.transforms import clip_transforms
from mergestream.runs.directory import Run
from mergestream.runs.identity import config_hash
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

TAGS = list_pretrained()


@pytest.mark.parametrize(("architecture", "name"), TAGS)
def test_inputs_are_preprocessed_as_open_clip_does_for_every_tag(architecture, name):
    size, tag = (
        open_clip.get_model_config(architecture)["vision_cfg"]["image_size"],
        get_pretrained_cfg(architecture, name),
    )
    values = preprocessing(architecture, tag, (size, size))
    ours = clip_transforms(values["size"], **{key: values[key] for key in PREPROCESSING})
    theirs = PreprocessCfg(**{**merge_preprocess_dict(PreprocessCfg(), tag), "size": (size, size)})
    assert repr(ours.eval) == repr(image_transform_v2(theirs, is_train=False))
    crop, *rest = ours.train.transforms
    assert crop.size == (size, size)
    assert (crop.scale, crop.interpolation) == ((0.9, 1.0), InterpolationMode(tag["interpolation"]))
    assert repr(rest) == repr(image_transform_v2(theirs, is_train=True).transforms[1:])
    quick = open_clip.get_model_config(architecture).get("quick_gelu", False)
    assert (values["quick_gelu"] or quick) == (quick or bool(tag.get("quick_gelu")))


def test_inputs_of_the_tags_that_open_clip_warns_about_have_quick_gelu():
    # open_clip warns that the activations of 28 tags differ; the architecture of one has QuickGELU itself.
    assert sum(preprocessing(a, get_pretrained_cfg(a, t), 224)["quick_gelu"] for a, t in TAGS) == 27
    assert len(TAGS) == 196


def loaded(monkeypatch, architecture, *arguments):
    """A small model under a published name, with random weights in the place of the published ones."""
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, architecture, SMALL)
    torch.manual_seed(0)
    state = open_clip.create_model(architecture, load_weights=False).state_dict()
    monkeypatch.setattr(loading, "_download", lambda *_: "none.safetensors")
    monkeypatch.setattr(loading, "read_tensors", lambda _: state)
    return loading.pretrained(architecture, *arguments)


SMALL = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 1, "layers": 1},
}


def test_inputs_of_openai_run_with_the_activation_of_its_training(monkeypatch):
    clip = loaded(monkeypatch, "ViT-B-32", "openai")
    kinds = {type(block.mlp.gelu).__name__ for block in clip.encoder.transformer.resblocks}
    assert kinds == {type(block.mlp.gelu).__name__ for block in clip.model.transformer.resblocks} == {"QuickGELU"}
    by_file = loaded(monkeypatch, "ViT-B-32", "weights.safetensors", "openai")
    assert type(by_file.encoder.transformer.resblocks[0].mlp.gelu).__name__ == "QuickGELU"
    assert by_file.preprocessing == clip.preprocessing
    plain = loaded(monkeypatch, "ViT-B-32", "weights.safetensors")
    assert type(plain.encoder.transformer.resblocks[0].mlp.gelu).__name__ == "GELU"
    with torch.no_grad():
        image = clip.transforms.eval(Image.new("RGB", (40, 30), "red"))[None]
        assert torch.equal(clip.encoder(image), by_file.encoder(image))
        assert not torch.equal(clip.encoder(image), plain.encoder(image))


def test_inputs_of_a_file_without_a_tag_are_preprocessed_as_openai_does_and_said(monkeypatch, capsys):
    with pytest.raises(UserError, match="TorchScript|must hold|not there"):
        loading.pretrained("ViT-B-32", "/nowhere/w.safetensors")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("model.pretrained=/nowhere/w.safetensors is a file, so images get OpenAI's preprocessing;")
    assert "openai, " in said
    assert said.endswith("write model.preprocess=TAG\n")


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("w.safetensors", "nobody"), "model.preprocess must be one of openai, .*; got model.preprocess=nobody$"),
        (("openai", "openai"), "model.preprocess is for weights from a file, .*Write model.preprocess=null$"),
    ],
)
def test_inputs_with_a_wrong_preprocess_are_refused(words, rule):
    with pytest.raises(UserError, match=rule):
        loading.pretrained("ViT-B-32", *words)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
def test_inputs_that_are_torchscript_say_which_file_to_fetch(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(UserError) as caught:
        loading.pretrained("ViT-B-32-quickgelu", str(tmp_path / "ViT-B-32.pt"))
    assert str(caught.value) == (
        f"model.pretrained must be a file of tensors; {tmp_path}/ViT-B-32.pt is a TorchScript archive, which holds "
        "code. Fetch timm/vit_base_patch32_clip_224.openai/open_clip_model.safetensors from the Hugging Face Hub "
        "instead, and write model.pretrained=/path/to/open_clip_model.safetensors model.preprocess=openai"
    )


OPENAI = preprocessing("ViT-B-32-quickgelu", get_pretrained_cfg("ViT-B-32-quickgelu", "openai"), 224)


def test_inputs_with_another_preprocessing_have_another_config_hash():
    config = {"seed": 5, "model": {"name": "open_clip"}}
    assert config_hash(config) == config_hash(config, OPENAI)  # the presets keep theirs
    assert config_hash(config) == config_hash(config | {"model": {"name": "open_clip", "preprocess": None}})
    changed = [{"quick_gelu": True}, {"interpolation": "bilinear"}, {"resize_mode": "squash"}]
    assert len({config_hash(config, OPENAI | change) for change in [{}, *changed]}) == 4


@pytest.mark.parametrize("recorded", [{}, {"preprocessing": OPENAI}])
def test_inputs_of_a_run_that_was_started_with_another_preprocessing_are_refused(recorded, tmp_path):
    run = Run(tmp_path, "digits", "class", 5, "open_clip", "seq", 5)
    files.write_json(run.path / "base.json", {"sha256": "", "clip_parameters": 1, "begun": {}, **recorded})
    run.require_preprocessing(OPENAI)
    run.require_preprocessing({})
    with pytest.raises(UserError, match="started with resize_mode=shortest, and this command has .*tag=NAME"):
        run.require_preprocessing(OPENAI | {"resize_mode": "squash"})
