"""The image transforms of CLIP, and the values behind them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from open_clip import image_transform
from PIL import Image
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, RandomResizedCrop

ImageTransform = Callable[[Image.Image], Tensor]
CROP_SCALE = (0.9, 1.0)  # share of the image that a training crop covers


@dataclass(frozen=True)
class Recipe:
    """What the transforms of `clip_transforms` do.

    Args:
        size: side of the square image in px.
        mean, std: normalisation of each colour channel.
        interpolation: bicubic or bilinear, in both transforms.
        resize_mode: in evaluation, shortest (resize the shorter side, then crop the centre) or squash (resize both
            sides).
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"


@dataclass(frozen=True)
class Transforms:
    """Image transforms, PIL image → float32 [3, H, W], for training (random crop) and evaluation (deterministic).

    Args:
        train, eval: the transforms.
        recipe: what they do, so that batches can be resized and normalised on a device; None if they are others than
            those of `clip_transforms`.
    """

    train: ImageTransform
    eval: ImageTransform
    recipe: Recipe | None = None


def clip_transforms(
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    resize_mode: str = "shortest",
) -> Transforms:
    """Return the published transforms; for the arguments see `Recipe`.

    Training: RandomResizedCrop(scale 0.9–1.0), without flip. Evaluation: what open_clip does for the same values.
    """
    recipe = Recipe(size, tuple(mean), tuple(std), interpolation, resize_mode)
    values = {"mean": recipe.mean, "std": recipe.std, "interpolation": interpolation, "resize_mode": resize_mode}
    train, evaluation = (image_transform(size, is_train=t, **values) for t in (True, False))
    if interpolation != "bicubic":  # open_clip's training transform ignores it
        crop = RandomResizedCrop(size, scale=CROP_SCALE, interpolation=InterpolationMode(interpolation))
        train = Compose([crop, *train.transforms[1:]])
    return Transforms(train, evaluation, recipe)


def before_normalization(transform: Compose) -> Compose:
    """Return the first steps of a transform of `clip_transforms`: PIL image → RGB image of the final size."""
    return Compose(transform.transforms[:-2])  # without ToTensor and Normalize
