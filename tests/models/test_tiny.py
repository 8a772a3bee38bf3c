"""The tiny CLIP: its tokenizer and its weights."""

from __future__ import annotations

import pytest
import torch

from mergestream.data.sources.digits import digits
from mergestream.models import tiny
from mergestream.models.clip import text_head


def test_tokens_by_hand():
    tokens = tiny.tokenize(["aé"])
    assert tokens.shape == (1, 64)
    assert tokens[0, :6].tolist() == [256, 97, 0xC3, 0xA9, 257, 0]
    with pytest.raises(ValueError, match="^a prompt for model=tiny must have at most 62 bytes, got 'xxx"):
        tiny.tokenize(["x" * 63])


def test_shipped_weights_are_small_and_recognise_digits():
    assert tiny.WEIGHTS.stat().st_size < 5_000_000
    clip, source = tiny.tiny(), digits()
    head = text_head(clip, source.prompts)
    images = torch.stack([clip.transforms.eval(source.test.images[i]) for i in range(len(source.test))])
    with torch.no_grad():
        predictions = head(clip.encoder(images)).argmax(-1).numpy()
    assert (predictions == source.test.labels).mean() >= 0.55
