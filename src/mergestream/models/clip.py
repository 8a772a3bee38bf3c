"""CLIP as the stream uses it: an image tower to train, and a text tower that makes a frozen head once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from open_clip import image_transform
from open_clip.model import CLIP
from PIL import Image
from torch import Tensor, nn

ImageTransform = Callable[[Image.Image], Tensor]


@dataclass(frozen=True)
class Transforms:
    """PIL image → float32 [3, H, W], for training (random crop) and for evaluation (no draws)."""

    train: ImageTransform
    eval: ImageTransform


def clip_transforms(size: int, mean: Sequence[float], std: Sequence[float]) -> Transforms:
    """The published transforms: RandomResizedCrop(scale 0.9–1.0, bicubic) without flip; resize and centre crop."""
    train, evaluation = (image_transform(size, is_train=t, mean=tuple(mean), std=tuple(std)) for t in (True, False))
    return Transforms(train, evaluation)


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP: what a function in this folder returns.

    Args:
        model: with `visual`, `encode_text` and `logit_scale`, as open_clip builds it.
        tokenize: texts → token ids.
        transforms: its image transforms.
        source: where the weights came from, for the record.
    """

    model: CLIP
    tokenize: Callable[[Sequence[str]], Tensor]
    transforms: Transforms
    source: str

    @property
    def encoder(self) -> nn.Module:
        """The image tower: the only part that is trained and saved."""
        return self.model.visual


class TextHead(nn.Module):
    """A frozen linear classifier on normalised image features: logits = exp(s) · normalise(f) · Wᵀ.

    Args:
        weight_CD: one normalised text embedding per class.
        scale: exp(s), CLIP's learnt temperature.
    """

    weight_CD: Tensor

    def __init__(self, weight_CD: Tensor, scale: float):
        super().__init__()
        self.register_buffer("weight_CD", weight_CD)
        self.scale = scale

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits [B, C]."""
        return self.scale * F.normalize(features_BD, dim=-1) @ self.weight_CD.T

    def restrict(self, classes: Sequence[int]) -> TextHead:
        """The head over `classes` only, columns in their order."""
        return TextHead(self.weight_CD[list(classes)], self.scale)


@torch.no_grad()
def text_head(clip: Clip, prompts: Sequence[Sequence[str]], batch_size: int = 256) -> TextHead:
    """The zero-shot head: embeddings of all prompts of a class, each normalised, averaged, normalised again.

    Radford et al. 2021, section 3.1.4; `prompts` are all prompts of each class, and classes may have different numbers.
    """
    device = next(clip.model.parameters()).device
    texts = [text for of_class in prompts for text in of_class]
    chunks = [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
    embeddings = [F.normalize(clip.model.encode_text(clip.tokenize(c).to(device)).float(), dim=-1) for c in chunks]
    by_class = torch.cat(embeddings).split([len(of_class) for of_class in prompts])
    weight_CD = F.normalize(torch.stack([of_class.mean(0) for of_class in by_class]), dim=-1)
    return TextHead(weight_CD, clip.model.logit_scale.exp().item())
