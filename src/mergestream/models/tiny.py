"""The tiny CLIP that ships with the package: 1.1 M parameters and a byte-level tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from open_clip.model import CLIP
from safetensors.torch import load_file
from torch import Tensor, nn

from mergestream.models.clip import Clip
from mergestream.models.transforms import clip_transforms

WEIGHTS = Path(__file__).with_name("tiny.safetensors")
CONTEXT_LENGTH = 64  # tokens, including the start and end tokens
START, END = 256, 257
IMAGE_SIZE = 32
MEAN = STD = (0.5, 0.5, 0.5)


def build() -> CLIP:
    """Return the architecture with random weights.

    The image tower has 4 layers of width 128 on patches of 8 px, the text tower 2 layers of width 96 on bytes.
    """
    return CLIP(
        embed_dim=128,
        vision_cfg={"image_size": IMAGE_SIZE, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32},
        text_cfg={"context_length": CONTEXT_LENGTH, "vocab_size": END + 1, "width": 96, "heads": 4, "layers": 2},
    )


def tower() -> nn.Module:
    """Return the image tower with random weights."""
    return build().visual


def tokenize(texts: Sequence[str]) -> Tensor:
    """Return the UTF-8 bytes of each text between a start and an end token, padded with 0: int64 [len(texts), 64].

    The end token has the largest id because open_clip pools the text features at the argmax of the ids.

    Raises:
        ValueError: if a text has more than 62 bytes.
    """
    tokens_NL = torch.zeros(len(texts), CONTEXT_LENGTH, dtype=torch.long)
    for row, text in zip(tokens_NL, texts, strict=True):
        ids = [START, *text.encode(), END]
        if len(ids) > CONTEXT_LENGTH:
            raise ValueError(f"a prompt for model=tiny must have at most {CONTEXT_LENGTH - 2} bytes, got {text!r}")
        row[: len(ids)] = torch.tensor(ids)
    return tokens_NL


def tiny() -> Clip:
    """Return the tiny CLIP with the weights that scripts/pretrain_tiny.py makes."""
    model = build()
    model.load_state_dict(load_file(WEIGHTS))
    return Clip(
        model.eval(),
        tokenize,
        clip_transforms(IMAGE_SIZE, MEAN, STD),
        source=f"mergestream/{WEIGHTS.name}",
        tower={"_target_": f"{__name__}.{tower.__name__}"},
    )
