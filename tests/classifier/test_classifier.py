"""A classifier from Python: its answers, its folder, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from helpers import files_below
from PIL import Image

import mergestream
from mergestream.classifier.classifier import Classifier
from mergestream.classifier.folder import write_classifier
from mergestream.models import tiny
from mergestream.models.clip import text_head
from mergestream.runtime import files
from mergestream.runtime.errors import UserError

NAMES = ["red", "green", "blue"]
PROMPTS = [[f"a photo of {name}.", name] for name in NAMES]


@pytest.fixture(scope="module")
def classifier():
    clip = tiny.tiny()
    return Classifier.of(clip, text_head(clip, PROMPTS), NAMES, PROMPTS, {}, temperature=2.0, facts={"merge": "m"})


@pytest.fixture
def folder(classifier, tmp_path):
    return write_classifier(classifier, classifier.encoder.state_dict(), tmp_path / "classifier")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five pictures of different sizes and modes, and their paths."""
    top, made = tmp_path_factory.mktemp("pictures"), []
    for number, mode in enumerate(["RGB", "L", "RGBA", "RGB", "L"]):
        noise = torch.randint(0, 256, (40, 30 + 9 * number, 4), generator=torch.Generator().manual_seed(number))
        made.append(Image.fromarray(noise.to(torch.uint8).numpy(), "RGBA").convert(mode))
        made[-1].save(top / f"{number}.png")
    return sorted(top.iterdir()), made


def require_near(ours, theirs):
    """Batches of other sizes may change the last bits."""
    for one, other in zip(ours, theirs, strict=True):
        assert [name for name, _ in one] == [name for name, _ in other]
        assert [p for _, p in one] == pytest.approx([p for _, p in other], abs=1e-5)


def test_answers_are_those_of_a_plain_loop(classifier, pictures):
    clip, (paths, images) = tiny.tiny(), pictures
    head = text_head(clip, PROMPTS)
    found = classifier(paths)
    white = [Image.new("RGBA", i.size, "white") for i in images]
    with torch.no_grad():
        for image, behind, answer in zip(images, white, found, strict=True):
            shown = Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")
            logits = head(clip.encoder(clip.transforms.eval(shown)[None]))[0].double() / 2
            probabilities = (logits.exp() / logits.exp().sum()).tolist()
            expected = sorted(zip(NAMES, probabilities, strict=True), key=lambda pair: -pair[1])
            assert [name for name, _ in answer] == [name for name, _ in expected]
            assert [p for _, p in answer] == pytest.approx([p for _, p in expected], abs=1e-5)
    assert classifier(images) == found
    require_near([answer.classes for answer in classifier.answers(iter(paths), top=9, size=2)], found)
    require_near(classifier(str(paths[0]), top=2), [found[0][:2]])


def test_a_picture_that_cannot_be_read_costs_only_itself(classifier, pictures, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    paths = [tmp_path / "bad.png", *pictures[0], tmp_path / "gone.png"]
    answers = list(classifier.answers(paths, top=1, size=3))
    assert answers[0].reason.startswith("cannot identify image file")
    assert answers[-1].reason == "No such file or directory"
    require_near([answer.classes for answer in answers[1:-1]], classifier(pictures[0], top=1))
    assert [a.reason for a in classifier.answers(paths[:1])] == [answers[0].reason]
    with pytest.raises(UserError, match=r"bad.png is not a readable picture \(cannot identify"):
        classifier(paths)


def test_a_folder_holds_all_of_it(classifier, folder, pictures):
    loaded = mergestream.Classifier.load(folder)
    assert loaded(pictures[0]) == classifier(pictures[0])
    assert (loaded.class_names, loaded.prompts, loaded.temperature) == (NAMES, PROMPTS, 2.0)
    assert loaded.facts == {"merge": "m"}
    facts = json.loads((folder / "classifier.json").read_text())
    assert facts["transform"] == json.loads(json.dumps(asdict(tiny.tiny().transforms.recipe)))
    assert sorted(path.name for path in folder.iterdir()) == [
        "classifier.json",
        "encoder.safetensors",
        "head.safetensors",
    ]


def test_a_folder_is_replaced_whole_or_not_at_all(classifier, folder, monkeypatch):
    other = replace(classifier, class_names=["a", "b", "c"])
    write_classifier(other, other.encoder.state_dict(), folder)
    assert Classifier.load(folder).class_names == ["a", "b", "c"]

    def full(path, value):
        raise UserError("cannot write")

    left = folder.with_name(".partial-0123-classifier")  # by a process that was killed
    left.mkdir()
    (left / "encoder.safetensors").touch()
    monkeypatch.setattr(files, "write_json", full)
    for target in (folder, folder.with_name("new")):
        with pytest.raises(UserError, match="cannot write"):
            write_classifier(classifier, other.encoder.state_dict(), target)
    assert Classifier.load(folder).class_names == ["a", "b", "c"]
    assert len(files_below(folder.parent)) == 3


def flip_a_bit(path, at=-2):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def of_version_2(folder):
    facts = files.read_json(folder / "classifier.json")
    (folder / "classifier.json").write_text(json.dumps({**facts, "format": 2, "version": "9.0", "checksum": "0"}))


def with_another_head(folder):
    files.write_tensors(folder / "head.safetensors", {"weight": torch.zeros(3, 128)})


DAMAGED = r"is damaged \(its checksum differs\)"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: flip_a_bit(f / "encoder.safetensors"), rf"encoder.safetensors {DAMAGED}. Write it again with"),
        (lambda f: flip_a_bit(f / "head.safetensors"), rf"head.safetensors {DAMAGED}. W"),
        (lambda f: flip_a_bit(f / "head.safetensors", 9), rf"head.safetensors {DAMAGED}. W"),
        (lambda f: flip_a_bit(f / "classifier.json"), "classifier.json (was altered|must be a JSON file)"),
        (lambda f: (f / "head.safetensors").unlink(), "head.safetensors is missing"),
        (with_another_head, "head.safetensors is not the file that was written with classifier.json"),
        (of_version_2, "classifier must have format 1, .* has format 2, of mergestream 9.0"),
        (lambda f: (f / "classifier.json").unlink(), "classifier must be a folder that merge.py export=classifier has"),
    ],
)
def test_a_folder_that_is_damaged_or_of_another_version(folder, damage, message):
    damage(folder)
    with pytest.raises(UserError, match=message):
        Classifier.load(folder)


def test_weights_of_another_architecture(classifier, tmp_path):
    weights = {**classifier.encoder.state_dict(), "more": torch.zeros(1)}
    folder = write_classifier(classifier, weights, tmp_path / "classifier")
    with pytest.raises(
        UserError, match=r"must hold the weights of mergestream.models.tiny.tower, which has other ones"
    ):
        Classifier.load(folder)


def test_a_model_that_cannot_build_its_tower_alone_is_called(pictures, tmp_path):
    clip = replace(tiny.tiny(), tower={})
    node = {"name": "mine", "_target_": "mergestream.models.tiny.tiny"}
    made = Classifier.of(clip, text_head(clip, PROMPTS), NAMES, PROMPTS, node)
    write_classifier(made, clip.encoder.state_dict(), tmp_path / "classifier")
    assert Classifier.load(tmp_path / "classifier")(pictures[0]) == made(pictures[0])
    stranger = replace(made, tower={"_target_": "os.system", "command": "true"})
    write_classifier(stranger, clip.encoder.state_dict(), tmp_path / "stranger")
    with pytest.raises(UserError, match=r"_target_ must be in one of mergestream, .* write allow_targets=\[os\]"):
        Classifier.load(tmp_path / "stranger")


def test_importing_the_package_loads_none_of_it():
    code = "import sys, mergestream; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
    with pytest.raises(AttributeError, match="has no attribute 'Classifer'"):
        mergestream.Classifer  # noqa: B018 - misspelt
