"""Classifies pictures with an image encoder and a head of text embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mergestream.classifier.pictures import Picture, batches
from mergestream.data.crops import normalized
from mergestream.models.clip import Clip, TextHead
from mergestream.models.transforms import Transforms
from mergestream.runtime.errors import UserError

BATCH = 64  # pictures in a forward pass


@dataclass(frozen=True)
class Answer:
    """What a picture shows.

    Args:
        classes: (name, probability) of the likeliest classes, best first; empty if the picture cannot be read.
        reason: why it cannot be read; None if it can.
    """

    classes: Sequence[tuple[str, float]] = ()
    reason: str | None = None


@dataclass(frozen=True)
class Classifier:
    """An image encoder and a head over some classes.

    ::

        from mergestream import Classifier

        classify = Classifier.load("runs/…/classifier")
        for answer in classify(["a.jpg", "b.png"], top=3):
            for name, probability in answer:
                print(name, probability)

    Args:
        encoder: the image tower, in evaluation mode.
        head: the text embeddings of the classes, and the logit scale.
        class_names: in the order of the head.
        transforms: those of the encoder.
        temperature: what the logits are divided by before the softmax; 1 leaves them as they are.
        facts: where all this comes from, for the record.
        tower: the config node that builds the encoder, or a CLIP with it; see `Clip`.
        prompts: the texts behind each row of the head.
    """

    encoder: nn.Module
    head: TextHead
    class_names: Sequence[str]
    transforms: Transforms
    temperature: float = 1.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    tower: Mapping[str, Any] = field(default_factory=dict)
    prompts: Sequence[Sequence[str]] = ()

    @classmethod
    def of(
        cls,
        clip: Clip,
        head: TextHead,
        class_names: Sequence[str],
        prompts: Sequence[Sequence[str]],
        model: Mapping[str, Any],
        temperature: float = 1.0,
        facts: Mapping[str, Any] = MappingProxyType({}),
    ) -> Classifier:
        """Return the image tower of a CLIP, with the weights that it has now, and a head as a classifier.

        Args:
            clip: the model.
            head: over the classes.
            class_names, prompts: of the classes.
            model: the config node of the CLIP, for models that cannot build their image tower alone.
            temperature, facts: see `Classifier`.
        """
        alone = clip.tower and clip.transforms.recipe is not None
        tower = clip.tower if alone else model
        return cls(clip.encoder.eval(), head, class_names, clip.transforms, temperature, facts, tower, prompts)

    @classmethod
    def load(cls, folder: str | Path, device: str = "cpu", allow_targets: Sequence[str] = ()) -> Classifier:
        """Return the classifier in a folder that ``merge.py export=classifier`` has written.

        Args:
            folder: the folder.
            device: where to compute, as torch names it.
            allow_targets: packages that its model may come from, besides mergestream's own.

        Raises:
            UserError: if the folder is of another version of the format, damaged or incomplete.
        """
        from mergestream.classifier.folder import read_classifier

        return read_classifier(Path(folder), tuple(allow_targets)).to(torch.device(device))

    def to(self, device: torch.device) -> Classifier:
        """Move the weights to a device, and return the classifier."""
        self.encoder.to(device).eval()
        self.head.to(device)
        return self

    def __call__(self, pictures: Iterable[Picture], top: int | None = None) -> list[list[tuple[str, float]]]:
        """Return (name, probability) of the likeliest classes of each picture, best first.

        Args:
            pictures: paths, or images of Pillow.
            top: how many classes; None is all of them.

        Raises:
            UserError: if a picture cannot be read.
        """
        pictures = [pictures] if isinstance(pictures, (str, Path, Image.Image)) else list(pictures)
        found = []
        for picture, answer in zip(pictures, self.answers(pictures, top), strict=True):
            if answer.reason is not None:
                raise UserError(f"{picture} is not a readable picture ({answer.reason})")
            found.append(list(answer.classes))
        return found

    def answers(self, pictures: Iterable[Picture], top: int | None = None, size: int = BATCH) -> Iterator[Answer]:
        """Yield the answer for each picture, in order; threads decode the next ones meanwhile.

        Args:
            pictures: paths, or images of Pillow.
            top: how many classes of each; None is all of them.
            size: pictures in a forward pass.
        """
        device, count = self.head.weight_CD.device, min(top or len(self.class_names), len(self.class_names))
        for pixels, reasons in batches(pictures, self.transforms, size):
            best: Iterator[tuple[list[int], list[float]]] = iter(())
            if pixels is not None:
                values, classes = self.probabilities(normalized(pixels.to(device), self.transforms.recipe)).topk(count)
                best = zip(classes.tolist(), values.tolist(), strict=True)
            for reason in reasons:
                yield Answer(self._named(*next(best))) if reason is None else Answer(reason=reason)

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """Return the logits [B, C], divided by the temperature, of transformed images [B, 3, H, W]."""
        return self.head(self.encoder(images)) / self.temperature

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the softmax of the `logits`: [B, C]."""
        return self.logits(images).softmax(-1)

    def _named(self, classes: Sequence[int], probabilities: Sequence[float]) -> list[tuple[str, float]]:
        return [(self.class_names[c], p) for c, p in zip(classes, probabilities, strict=True)]
