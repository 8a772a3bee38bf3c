"""A classifier as an ONNX graph, run by onnxruntime."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import command

from mergestream.classifier import onnx
from mergestream.classifier.classifier import Classifier
from mergestream.compose import merging
from mergestream.models import tiny
from mergestream.models.clip import text_head
from mergestream.runtime.errors import UserError

NAMES = ["one", "two", "three"]


@pytest.fixture
def classifier():
    clip = tiny.tiny()
    return Classifier.of(clip, text_head(clip, [[n] for n in NAMES]), NAMES, [], {}, temperature=1.5)


def test_the_graph_computes_what_torch_does(classifier, tmp_path):
    import onnxruntime

    path = onnx.write_onnx(classifier, tmp_path / "classifier.onnx")
    assert [p.name for p in tmp_path.iterdir()] == ["classifier.onnx"]
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == NAMES
    assert json.loads(session.get_modelmeta().custom_metadata_map["transform"])["size"] == 32
    for count in (1, 5):
        pixels = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        logits, probabilities = session.run(["logits", "probabilities"], {"pixels": pixels.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), classifier.logits(pixels), rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(probabilities), classifier.probabilities(pixels), rtol=0, atol=1e-4)


def test_what_cannot_be_written(classifier, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx, "LIMIT", 1_000_000)
    with pytest.raises(UserError, match=r"one file, of 2 GB at most; .* Write export=classifier"):
        onnx.write_onnx(classifier, tmp_path / "classifier.onnx")

    def refuse(*_, **__):
        raise torch.onnx.OnnxExporterError("no such operator\nand much more")

    monkeypatch.setattr(onnx, "LIMIT", 10**9)
    monkeypatch.setattr(torch.onnx, "export", refuse)
    with pytest.raises(UserError, match=r"torch cannot translate VisionTransformer \(no such operator\). Write"):
        onnx.write_onnx(classifier, tmp_path / "classifier.onnx")
    assert not list(tmp_path.iterdir())


def test_without_its_packages_nothing_begins(monkeypatch, tmp_path):
    monkeypatch.setattr(merging, "find_spec", lambda name: None)
    outcome = command("merge.py", "export=onnx", f"root={tmp_path}")
    assert outcome.code == 1
    assert "Type: pip install 'mergestream[onnx]'" in outcome.err
    assert outcome.err.startswith("error: export=onnx needs the packages onnx and onnxscript; onnx is not installed.")
