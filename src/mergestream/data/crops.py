"""Crops, resizes and normalises images in batches, on any device, as PIL and torchvision do it one by one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor

from mergestream.models.transforms import CROP_SCALE, Recipe

ASPECT = (3 / 4, 4 / 3)  # of a training crop
RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RADIUS = {"bicubic": 2.0, "bilinear": 1.0}  # of the filter, in pixels
SINCE_PILLOW_13 = int(PIL.__version__.split(".")[0]) >= 13


class Crops(NamedTuple):
    """A batch of crops that are still to be resized.

    Args:
        pixels: uint8 [B, H, W, C]; each crop is in the upper left corner, and the rest is padding.
        sizes: height and width of each crop as it is stored, int64 [B, 2].
        turned: whether a crop is stored with rows and columns exchanged, bool [B].
    """

    pixels: Tensor
    sizes: Tensor
    turned: Tensor


def crop_box(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """Draw the box of a training crop, as torchvision's RandomResizedCrop draws it from the same generator.

    Args:
        height, width: of the image in px.
        generator: on the CPU.

    Returns:
        top, left, height and width of the crop in px.
    """

    def uniform(low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high, generator=generator).item()

    low, high = torch.log(torch.tensor(ASPECT)).tolist()
    for _ in range(10):
        area = height * width * uniform(*CROP_SCALE)
        aspect = torch.exp(torch.empty(1).uniform_(low, high, generator=generator)).item()
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,), generator=generator).item()
            return int(top), int(torch.randint(0, width - w + 1, (1,), generator=generator).item()), h, w
    # No crop of this area fits: the largest one in the centre whose aspect ratio is allowed.
    w = min(width, round(height * ASPECT[1]))
    h = min(height, round(width / ASPECT[0]))
    return (height - h) // 2, (width - w) // 2, h, w


def stacked(images: Sequence[np.ndarray]) -> Tensor:
    """Return images uint8 [H, W] or [H, W, 3] as [B, H, W, C], padded to the largest; C is 3 if any has colours."""
    heights, widths = zip(*(image.shape[:2] for image in images), strict=True)
    channels = max(image.ndim for image in images) * 2 - 3  # 1 or 3
    batch = np.zeros((len(images), max(heights), max(widths), channels), dtype=np.uint8)
    for target, image in zip(batch, images, strict=True):
        target[: image.shape[0], : image.shape[1]] = image if image.ndim == 3 else image[..., None]
    return torch.from_numpy(batch)


def padded(crops: Sequence[np.ndarray], size: int) -> Crops:
    """Return crops uint8 [H, W] or [H, W, 3] as one batch that `resized` resizes to `size` px."""
    turned = [_rows_first(crop.shape[0], crop.shape[1], size) for crop in crops]
    stored = [crop.swapaxes(0, 1) if turn else crop for crop, turn in zip(crops, turned, strict=True)]
    return Crops(stacked(stored), torch.tensor([crop.shape[:2] for crop in stored]), torch.tensor(turned))


def _rows_first(height: int, width: int, size: int) -> bool:
    """Return whether PIL resizes the rows of an image before its columns. The order matters: PIL rounds in between."""
    return SINCE_PILLOW_13 and height > size and height - size > 2 * (width - size)


def normalized(pixels: Tensor | Crops, recipe: Recipe | None) -> Tensor:
    """Return a batch as the model takes it.

    Args:
        pixels: images uint8 [B, S, S, C] of the final size, crops to be resized, or finished images float32
            [B, 3, S, S], which are returned as they are.
        recipe: what to do; None if the images are finished.

    Returns:
        float32 [B, 3, S, S], on the device of `pixels`.
    """
    if isinstance(pixels, Crops):
        assert recipe is not None
        levels = resized(pixels, recipe.size, recipe.interpolation)
    elif pixels.dtype == torch.uint8:
        levels = pixels.permute(0, 3, 1, 2)
    else:
        return pixels
    assert recipe is not None
    mean, std = (_by_channel(values, levels.device) for values in (recipe.mean, recipe.std))
    # Reordering bytes before they become floats is twice as fast on a CPU.
    levels = levels.expand(-1, 3, -1, -1).contiguous().to(torch.float32, copy=True)
    return levels.div_(255).sub_(mean).div_(std)


@cache  # a copy to a device for each batch would make the training wait
def _by_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device)[:, None, None]


@torch.autocast("cuda", enabled=False)
@torch.autocast("cpu", enabled=False)
def resized(crops: Crops, size: int, interpolation: str) -> Tensor:
    """Return crops as squares of `size` px: levels from 0 to 255, float32 [B, C, size, size].

    Each axis is a product with a matrix of PIL's antialiased filter, columns first, rounded in between as PIL rounds.
    PIL's weights have 22 bits after the point; so levels differ from PIL's by at most 1.
    """
    batch, height, width, channels = crops.pixels.shape
    rows, columns = (
        _filter(crops.sizes[:, axis], length, size, interpolation) for axis, length in ((0, height), (1, width))
    )
    levels = crops.pixels.permute(0, 3, 1, 2).reshape(batch, channels * height, width).float()
    levels = _whole(levels @ columns.mT).view(batch, channels, height, size)
    levels = _whole(rows[:, None] @ levels)
    return torch.where(crops.turned[:, None, None, None], levels.mT, levels)


def _whole(levels: Tensor) -> Tensor:
    """Round levels as PIL does, halves up, and limit them to 8 bits; in place."""
    return levels.add_(0.5).floor_().clamp_(0, 255)


def _filter(extents: Tensor, length: int, size: int, interpolation: str) -> Tensor:
    """Return the matrices [B, size, length] that resize the first `extent` of `length` pixels to `size` pixels.

    Args:
        extents: pixels of each crop along the axis, int64 [B].
        length: pixels of the padded axis.
        size: pixels after resizing.
        interpolation: bicubic (Keys 1981 with a = -0.5, as PIL has it) or bilinear.
    """
    scale = extents.to(torch.float64)[:, None, None] / size
    stretch = scale.clamp(min=1.0)  # a filter that shrinks an image covers all of its pixels
    centres = (torch.arange(size, device=extents.device, dtype=torch.float64)[:, None] + 0.5) * scale
    pixels = torch.arange(length, device=extents.device, dtype=torch.float64)
    reach = RADIUS[interpolation] * stretch
    # PIL takes the pixels from the rounded start of the filter to its rounded end.
    inside = (pixels >= torch.floor(centres - reach + 0.5)) & (pixels < torch.floor(centres + reach + 0.5))
    inside &= pixels < extents[:, None, None]
    x = ((pixels + 0.5 - centres) / stretch).abs()
    if interpolation == "bicubic":
        near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
        weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    else:
        weights = (1 - x).clamp(min=0)
    weights = torch.where(inside, weights, 0.0)
    return (weights / weights.sum(-1, keepdim=True)).float()
