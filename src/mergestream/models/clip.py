"""A CLIP model, and the frozen classification head that its text tower makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from torch import Tensor, nn

from mergestream.models.transforms import Transforms


@dataclass(frozen=True)
class Clip:
    """A loaded CLIP, as the functions of the ``model`` group return it.

    Args:
        model: an open_clip model with `visual`, `encode_text` and `logit_scale`.
        tokenize: texts → token ids.
        transforms: image transforms of the model.
        source: where the weights come from, recorded in base.json.
        preprocessing: the values behind the transforms, recorded in base.json; empty if the option has only one.
        tower: a config node whose function returns the image tower with any weights and downloads nothing; empty if
            there is none, and the node of the ``model`` group builds the whole CLIP instead.
    """

    model: CLIP
    tokenize: Callable[[Sequence[str]], Tensor]
    transforms: Transforms
    source: str
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    tower: Mapping[str, Any] = field(default_factory=dict)

    @property
    def encoder(self) -> nn.Module:
        """The image tower, the only part that is trained and saved."""
        return self.model.visual


class TextHead(nn.Module):
    """A frozen linear classifier on image features f: logits = exp(s) · f/‖f‖ · Wᵀ + b.

    Args:
        weight_CD: one normalised text embedding per class.
        scale: exp(s), CLIP's learned logit scale.
        bias: b, SigLIP's learned logit bias. It changes neither the argmax nor the softmax over classes, only the
            sigmoid that SigLIP is calibrated for.
    """

    weight_CD: Tensor

    def __init__(self, weight_CD: Tensor, scale: float, bias: float = 0.0):
        super().__init__()
        self.register_buffer("weight_CD", weight_CD)
        self.scale, self.bias = scale, bias

    def forward(self, features_BD: Tensor) -> Tensor:
        """Return logits [B, C] from image features [B, D], in the precision of the weights.

        In bfloat16, logits around 30 would be multiples of an eighth, and many classes would tie.
        """
        with torch.autocast(features_BD.device.type, enabled=False):
            features_BD = features_BD.to(self.weight_CD.dtype)
            return self.scale * F.normalize(features_BD, dim=-1) @ self.weight_CD.T + self.bias

    def restrict(self, classes: Sequence[int]) -> TextHead:
        """Return the head over `classes` only, with its columns in their order."""
        return TextHead(self.weight_CD[list(classes)], self.scale, self.bias)


@torch.no_grad()
def text_head(
    clip: Clip, prompts: Sequence[Sequence[str]], groups: Sequence[int] = (), *, batch_size: int = 256
) -> TextHead:
    """Return the zero-shot head of Radford et al. 2021, section 3.1.4.

    The weight of a class is the average of its normalised prompt embeddings, normalised again.

    Args:
        clip: the model whose text tower embeds the prompts.
        prompts: the prompts of each class; classes may have different numbers of prompts.
        groups: how many classes became known at a time; empty if all at once. A forward pass has prompts of one group
            only, so that the weights of a class do not depend on later classes, to the bit.
        batch_size: prompts per forward pass.
    """
    device = next(clip.model.parameters()).device
    chunks: list[list[str]] = []
    for start, end in pairwise([0, *accumulate(groups or [len(prompts)])]):
        texts = [text for of_class in prompts[start:end] for text in of_class]
        chunks += [texts[i : i + batch_size] for i in range(0, len(texts), batch_size)]
    embeddings = [F.normalize(clip.model.encode_text(clip.tokenize(c).to(device)).float(), dim=-1) for c in chunks]
    by_class = torch.cat(embeddings).split([len(of_class) for of_class in prompts])
    weight_CD = F.normalize(torch.stack([of_class.mean(0) for of_class in by_class]), dim=-1)
    bias = getattr(clip.model, "logit_bias", None)
    return TextHead(weight_CD, clip.model.logit_scale.exp().item(), 0.0 if bias is None else bias.item())
