"""A merged CLIP gives the same embeddings in other libraries."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from helpers import command, config
from safetensors.torch import load_file, save_file

from mergestream.classifier.classifier import Classifier
from mergestream.compose.inputs import Inputs
from mergestream.merging.export import export, huggingface
from mergestream.models import tiny
from mergestream.models.clip import text_head
from mergestream.runtime.errors import UserError

NAMES = ["five", "four", "one", "six", "three", "two"]  # of the noise, in the order of the class ids


@pytest.fixture
def merge(root, words, run_at):
    """Merge a finished run with an export; returns the folder of the merge."""

    def run(*overrides):
        outcome = command("merge.py", f"root={root}", *words, *overrides)
        assert outcome.code == 0, outcome.err
        assert "exported to" in outcome.out
        return run_at(root).path / "merges/magmax-0.5"

    return run


@torch.no_grad()
def embeddings(model, images, tokens):
    return model.encode_image(images), model.encode_text(tokens)


def inputs():
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return images, tiny.tokenize(["a photo of the digit seven", "a", "Ωmega"])


def merged_tiny(folder):
    model = tiny.tiny().model
    model.visual.load_state_dict(load_file(folder / "merged.safetensors"))
    return model


def test_open_clip_loads_the_whole_clip(merge):
    folder = merge("export=open_clip")
    expected, model = embeddings(merged_tiny(folder), *inputs()), tiny.build().eval()
    model.load_state_dict(load_file(folder / "open_clip.safetensors"))
    for ours, theirs in zip(expected, embeddings(model, *inputs()), strict=True):
        assert torch.equal(ours, theirs)
    named = json.loads((folder / "open_clip.json").read_text())
    assert named == {
        "id2label": {str(c): n for c, n in enumerate(NAMES)},
        "label2id": {n: c for c, n in enumerate(NAMES)},
    }


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_transformers_loads_the_whole_clip(merge):
    from transformers import CLIPImageProcessor, CLIPModel

    folder = merge("export=huggingface")
    model = CLIPModel.from_pretrained(folder / "huggingface").eval()
    images, tokens = inputs()
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=images)
    for ours, theirs in zip(
        embeddings(merged_tiny(folder), images, tokens), (output.image_embeds, output.text_embeds), strict=True
    ):
        torch.testing.assert_close(torch.nn.functional.normalize(ours, dim=-1), theirs, rtol=0, atol=1e-5)
    processor = CLIPImageProcessor.from_pretrained(folder / "huggingface")
    assert list(processor.image_mean) == list(tiny.MEAN)
    assert model.config.id2label == dict(enumerate(NAMES))
    assert model.config.label2id["two"] == NAMES.index("two")


def test_a_classifier_has_head_names_and_prompts_of_the_run(merge, root, words):
    folder = merge("export=classifier")
    again = command("merge.py", f"root={root}", *words, "export=classifier")  # of a finished merge, without evaluation
    assert "already merged" in again.out
    classifier = Classifier.load(folder / "classifier")
    prompts = [[f"a photo of a {name}."] for name in NAMES]
    assert (list(classifier.class_names), list(classifier.prompts)) == (NAMES, prompts)
    clip = tiny.tiny()
    assert torch.equal(classifier.head.weight_CD, text_head(clip, prompts).weight_CD)
    assert all(
        torch.equal(t, classifier.encoder.state_dict()[n]) for n, t in load_file(folder / "merged.safetensors").items()
    )
    metrics = json.loads((folder / "metrics.json").read_text())
    assert classifier.facts["merge"] == metrics["merge"]
    assert classifier.facts["base_sha256"] == metrics["provenance"]["base_sha256"]
    assert classifier.temperature == 1.0  # there are no validation images


def test_merged_files_have_no_classes_to_export(tmp_path):
    words = ["base=b.safetensors", "checkpoints=[a.safetensors]", f"out={tmp_path}/m.safetensors", "export=classifier"]
    outcome = command("merge.py", *words)
    assert outcome.code == 1
    assert "export=classifier needs the classes of a run; base, checkpoints and out have none. Write" in outcome.err


SMALL = {
    "embed_dim": 48,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 64, "layers": 2, "width": 96, "head_width": 32, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},
}


@pytest.mark.filterwarnings("ignore")
def test_an_architecture_of_open_clip_by_its_name(tmp_path):
    """Laid out as ViT-B-32-quickgelu: the file by `open_clip.create_model`, the folder by transformers."""
    import open_clip
    from transformers import CLIPModel

    name = "ViT-small-for-tests"
    (tmp_path / f"{name}.json").write_text(json.dumps(SMALL))
    open_clip.add_model_config(tmp_path / f"{name}.json")
    torch.manual_seed(0)
    weights = open_clip.create_model(name, load_weights=False).state_dict()
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, tmp_path / "w.safetensors")
    node = ["model=vit_b_16", f"model.architecture={name}", f"model.pretrained={tmp_path}/w.safetensors"]
    clip = Inputs(config("merge", *node)).clip()
    tower = {key: tensor + 0.01 for key, tensor in clip.encoder.state_dict().items()}
    path = export(clip, tower, "open_clip", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = open_clip.create_model(name, pretrained=str(path)).eval()
    assert torch.equal(loaded.visual.proj, clip.encoder.proj + 0.01)
    assert torch.equal(loaded.token_embedding.weight, clip.model.token_embedding.weight)
    images, tokens = torch.randn(2, 3, 64, 64), open_clip.get_tokenizer(name)(["a cat", "two dogs on a sofa"])
    expected = embeddings(loaded, images, tokens)
    model = CLIPModel.from_pretrained(export(clip, tower, "huggingface", tmp_path)).eval()
    with torch.no_grad():
        output = model(input_ids=tokens, pixel_values=images)
    assert model.config.vision_config.hidden_act == "quick_gelu"
    for ours, theirs in zip(expected, (output.image_embeds, output.text_embeds), strict=True):
        torch.testing.assert_close(torch.nn.functional.normalize(ours, dim=-1), theirs, rtol=0, atol=1e-4)


def test_merged_files_are_exported(tmp_path):
    clip = tiny.tiny()
    for index in range(3):
        state = {name: tensor + 0.01 * index for name, tensor in clip.model.state_dict().items()}
        save_file(state, tmp_path / f"{index}.safetensors")
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    out = tmp_path / "m.safetensors"
    arguments = [f"base={paths[0]}", f"checkpoints=[{paths[1]},{paths[2]}]", f"out={out}", "export=open_clip"]
    outcome = command("merge.py", *arguments)
    assert outcome.code == 0, outcome.err
    exported = load_file(tmp_path / "m/open_clip.safetensors")
    assert all(torch.equal(tensor, exported[name]) for name, tensor in load_file(out).items())


def test_weights_that_do_not_fit_are_not_exported(tmp_path):
    clip = tiny.tiny()
    with pytest.raises(UserError, match=r"export: visual.nonsense does not match model=.*; choose the model"):
        export(clip, {"nonsense": torch.zeros(1)}, "open_clip", tmp_path)
    with pytest.raises(UserError, match=r"export: visual.proj does not match model="):
        export(clip, {"proj": torch.zeros(1)}, "open_clip", tmp_path)
    with pytest.raises(UserError, match="cannot hold visual.transformer.resblocks.0.ls_1.gamma"):
        huggingface(
            clip.model, {"visual.transformer.resblocks.0.ls_1.gamma": torch.zeros(1), "logit_scale": torch.ones(())}
        )
    assert not list(tmp_path.iterdir())
    outcome = command("merge.py", "export=keras")
    assert outcome.code == 1
    assert "export must be one of open_clip, huggingface, classifier, onnx" in outcome.err
