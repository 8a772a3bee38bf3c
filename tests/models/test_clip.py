"""The text head and the image transforms."""

from __future__ import annotations

import math

import pytest
import torch
from PIL import Image

from mergestream.data.source import prompts
from mergestream.models import tiny
from mergestream.models.clip import TextHead, text_head


def test_text_head_against_a_plain_loop():
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


def test_restricted_head_selects_columns():
    head, features = TextHead(torch.randn(6, 4), 10.0), torch.randn(3, 4)
    torch.testing.assert_close(head.restrict([4, 1])(features), head(features)[:, [4, 1]])


def test_head_has_nothing_to_train():
    assert not list(TextHead(torch.randn(6, 4), 10.0).parameters())


def test_transforms_follow_the_protocol():
    clip = tiny.tiny()
    crop = clip.transforms.train.transforms[0]
    assert crop.scale == (0.9, 1.0)
    assert crop.interpolation.value == "bicubic"
    assert "Flip" not in repr(clip.transforms.train)
    image = Image.new("RGB", (64, 32), "red")
    image.paste("blue", (16, 0, 48, 32))
    expected = torch.tensor([-1.0, -1.0, 1.0])[:, None, None].expand(3, 32, 32)  # the centre, normalised
    assert torch.equal(clip.transforms.eval(image), expected)
