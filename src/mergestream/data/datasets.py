"""The datasets that loaders read: training images with keyed crops, and evaluation images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from mergestream.data.crops import RESAMPLING, Crops, crop_box, padded, stacked
from mergestream.data.sampling import Draw
from mergestream.data.source import Split
from mergestream.models.transforms import Transforms, before_normalization
from mergestream.runtime.seeding import key

Pixels = Tensor | Crops


class TrainImages(Dataset):
    """Batches of training samples (pixels, labels [B], weights [B]), whose random draws are keyed by the sample.

    The pixels are uint8 images [B, S, S, C], crops that are still to be resized, or float32 images [B, 3, S, S] of
    transforms without a recipe. `normalized` makes all of them what the model takes.

    Args:
        split: images and labels.
        transforms: of the model.
        seed: keys the draws, with task, epoch and sample.
        resize: whether crops are resized here, by PIL; or later, on the device.
    """

    def __init__(self, split: Split, transforms: Transforms, seed: int, *, resize: bool = True):
        self.split, self.transforms, self.seed, self.resize = split, transforms, seed, resize

    def __getitems__(self, draws: Sequence[Draw]) -> tuple[Pixels, Tensor, Tensor]:
        labels = torch.from_numpy(self.split.labels[[draw.sample for draw in draws]])
        weights = torch.tensor([draw.weight for draw in draws], dtype=torch.float64)
        if self.transforms.recipe is None:
            return self._transformed(draws), labels, weights
        crops = [self._crop(draw) for draw in draws]
        pixels = stacked(crops) if self.resize else padded(crops, self.transforms.recipe.size)
        return pixels, labels, weights

    def _key(self, draw: Draw) -> int:
        return key(self.seed, draw.task, "augmentation", draw.epoch, draw.sample)

    def _crop(self, draw: Draw) -> np.ndarray:
        """Return the crop of a sample, uint8 [H, W] or [H, W, 3], resized if that is done here."""
        image, recipe = self.split.images[draw.sample], self.transforms.recipe
        assert recipe is not None
        top, left, height, width = crop_box(image.height, image.width, torch.Generator().manual_seed(self._key(draw)))
        crop = image.crop((left, top, left + width, top + height))
        if self.resize:
            crop = crop.resize((recipe.size, recipe.size), RESAMPLING[recipe.interpolation])
        return np.asarray(crop if crop.mode in ("L", "RGB") else crop.convert("RGB"))

    def _transformed(self, draws: Sequence[Draw]) -> Tensor:
        """Return finished images of a transform that may draw from torch's global generator."""
        with torch.random.fork_rng(devices=[]):
            images = []
            for draw in draws:
                torch.default_generator.manual_seed(self._key(draw))
                images.append(self.transforms.train(self.split.images[draw.sample]))
        return torch.stack(images)


class EvalImages(Dataset):
    """Batches of evaluation images: uint8 [B, S, S, C], or float32 [B, 3, S, S] of transforms without a recipe.

    Args:
        split: the images.
        transforms: of the model.
    """

    def __init__(self, split: Split, transforms: Transforms):
        self.split = split
        self.transform: Callable[[Image.Image], object] = transforms.eval
        if transforms.recipe is not None:
            self.transform = before_normalization(transforms.eval)

    def __getitems__(self, positions: Sequence[int]) -> Tensor:
        images = (self.transform(self.split.images[position]) for position in positions)
        return torch.stack([i if isinstance(i, Tensor) else torch.from_numpy(np.array(i)) for i in images])
