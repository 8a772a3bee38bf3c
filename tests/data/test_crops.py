"""Crops and normalisation in batches, against torchvision and PIL, image by image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.functional import normalize, to_tensor

from mergestream.data.crops import RESAMPLING, Crops, crop_box, normalized, padded, resized
from mergestream.data.datasets import EvalImages, TrainImages
from mergestream.data.images import ImageArray
from mergestream.data.sampling import Draw
from mergestream.data.source import Split
from mergestream.models.transforms import Transforms, clip_transforms
from mergestream.runtime.seeding import key

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SIZES = [
    (8, 8),
    (32, 32),
    (1, 1),
    (375, 500),
    (500, 375),
    (300, 3),
    (3, 300),
    (17, 23),
    (224, 224),
    (270, 230),
    (272, 247),
]


def photo(height, width, seed=0, channels=3):
    """Random colours, with the sharpest edges and both ends of the range."""
    draw = np.random.default_rng(seed)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return draw.choice([0, 1, 100, 254, 255], shape).astype(np.uint8)


@pytest.mark.parametrize("size", SIZES)
def test_boxes_are_those_of_torchvision(size):
    image = Image.fromarray(photo(*size))
    for seed in range(40):
        torch.manual_seed(seed)
        expected = RandomResizedCrop.get_params(image, [0.9, 1.0], [3 / 4, 4 / 3])
        assert crop_box(*size, torch.Generator().manual_seed(seed)) == expected


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("target", [32, 224])
def test_batches_are_resized_as_pil_resizes_each_image(interpolation, target):
    crops = [photo(*size, seed) for seed, size in enumerate(SIZES)]
    levels = resized(padded(crops, target), target, interpolation)
    assert levels.shape == (len(SIZES), 3, target, target)
    for crop, ours in zip(crops, levels, strict=True):
        expected = Image.fromarray(crop).resize((target, target), RESAMPLING[interpolation])
        difference = (ours.permute(1, 2, 0) - torch.from_numpy(np.array(expected)).float()).abs()
        assert difference.max() <= 1, crop.shape
        assert difference.mean() < 0.05, crop.shape  # with the passes the other way round, 0.12 and more


def split_of(*images):
    """A split of images of different sizes."""
    return Split([Image.fromarray(image) for image in images], np.arange(len(images)))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_images_are_those_of_torchvision(interpolation, channels):
    """By PIL to the bit, in batches to 1 of 255 levels."""
    split = split_of(*(photo(*size, seed, channels) for seed, size in enumerate(SIZES)))
    transforms = clip_transforms(32, MEAN, STD, interpolation)
    draws = [Draw(task, epoch, sample, 1.0) for task in (0, 3) for epoch in (0, 2) for sample in range(len(SIZES))]
    pil, labels, weights = TrainImages(split, transforms, 5).__getitems__(draws)
    batch, *_ = TrainImages(split, transforms, 5, resize=False).__getitems__(draws)
    assert (labels.tolist(), weights.tolist()) == ([d.sample for d in draws], [1.0] * len(draws))
    assert pil.dtype == batch.pixels.dtype == torch.uint8
    ours, device = normalized(pil, transforms.recipe), normalized(batch, transforms.recipe)
    crop = RandomResizedCrop(32, scale=(0.9, 1.0), interpolation=InterpolationMode(interpolation))
    for draw, image, other in zip(draws, ours, device, strict=True):
        torch.manual_seed(key(5, draw.task, "augmentation", draw.epoch, draw.sample))
        expected = normalize(to_tensor(crop(split.images[draw.sample]).convert("RGB")), MEAN, STD)
        assert torch.equal(image, expected)
        assert ((other - expected).abs() * torch.tensor(STD)[:, None, None]).max() < 1.001 / 255


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_evaluation_images_are_those_of_open_clip(mode):
    split = split_of(*(photo(*size, seed) for seed, size in enumerate(SIZES)))
    transforms = clip_transforms(24, MEAN, STD, resize_mode=mode)
    pixels = EvalImages(split, transforms).__getitems__(range(len(SIZES)))
    assert pixels.dtype == torch.uint8
    expected = torch.stack([transforms.eval(image) for image in split.images])
    assert torch.equal(normalized(pixels, transforms.recipe), expected)


def test_transforms_of_ones_own_draw_from_keys_and_leave_the_generator_alone():
    split = Split(ImageArray(photo(8, 8, channels=3)[None].repeat(4, 0)), np.arange(4))
    transforms = Transforms(lambda image: to_tensor(image) * torch.rand(1), to_tensor)
    images = TrainImages(split, transforms, 5)
    draws = [Draw(0, 0, sample, 1.0) for sample in range(4)]
    before = torch.get_rng_state()
    forward, *_ = images.__getitems__(draws)
    backward, *_ = images.__getitems__(draws[::-1])
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(forward, backward.flip(0))
    assert torch.equal(normalized(forward, None), forward)
    assert torch.equal(EvalImages(split, transforms).__getitems__([2])[0], to_tensor(split.images[2]))


def test_the_device_path_needs_no_values():
    """On the meta device, where a value that is read would be an error: nothing waits for the device."""
    crops = Crops(*(tensor.to("meta") for tensor in padded([photo(20, 30), photo(31, 8)], 16)))
    assert normalized(crops, clip_transforms(16, MEAN, STD).recipe).shape == (2, 3, 16, 16)
