"""Glyphs: 100 characters drawn with matplotlib's fonts in six domains, an offline stand-in for CIFAR-100.

`render` draws a character in one font at 64 px; `distort` turns a batch of these into 32 px images with a random warp,
resolution, polarity and noise. The pre-training of the tiny CLIP uses the same two functions with milder settings, so
the domains below are partly new to it.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from mergestream.data.images import ImageArray
from mergestream.data.source import Source, Split, prompts

# Without look-alikes across scripts (Latin A, Greek Α, Cyrillic А; 3 and З), which no image can tell apart.
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghinqrtmyÆΓΔΘΛΞΠΣΦΨΩαβγδεζηθλμξπστφψωБДЖИЙЛЦЧШЩЪЫЬЭЮЯЂЄЉЊЋЏ"
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-BoldOblique.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "STIXGeneralBolIta.ttf",
)
TEMPLATES = ("a photo of the {}.", "a picture of the {}.", "a drawing of the {}.", "a scan of the {}.")

RENDER_SIZE = 64  # px; large enough that warping and reducing to 32 px lose no detail
SIZE = 32  # px of the finished image


@dataclass(frozen=True)
class Distortion:
    """Ranges of the random changes to a glyph; each is drawn uniformly per image.

    Args:
        degrees: rotation in [-degrees, degrees].
        shear: horizontal shear in [-shear, shear].
        scale: size of the character relative to its rendering.
        stretch: ratio of width to height in [1 - stretch, 1 + stretch].
        shift: translation in [-shift, shift], as a fraction of half the image.
        elastic: amplitude of a smooth random displacement, in the unit of `shift`.
        pixels: resolution in px that the image is reduced to before it is enlarged to 32 px (32: not reduced).
        noise: standard deviation of additive Gaussian noise, for intensities in [0, 1].
        inverted: dark characters on a light ground.
        outlined: only the contours of the strokes.
    """

    degrees: float = 10
    shear: float = 0.15
    scale: tuple[float, float] = (1.0, 1.4)
    stretch: float = 0.1
    shift: float = 0.1
    elastic: float = 0.04
    pixels: tuple[int, int] = (20, 32)
    noise: float = 0.03
    inverted: bool = False
    outlined: bool = False


DOMAINS = {
    "plain": Distortion(),
    "rotated": Distortion(degrees=25),
    "coarse": Distortion(pixels=(9, 12)),
    "noisy": Distortion(noise=0.12),
    "inverted": Distortion(inverted=True),
    "outlined": Distortion(outlined=True, scale=(1.2, 1.5)),
}


def class_name(character: str) -> str:
    """Return a character's name in the Unicode database: ``7`` is "digit seven", ``β`` "greek small letter beta"."""
    return unicodedata.name(character).lower()


@cache
def render(character: str, font: str, stroke: int = 0) -> np.ndarray:
    """Draw a character centred, white on black, uint8 [64, 64].

    Args:
        character: one of `CHARACTERS`.
        font: one of `FONTS`.
        stroke: px by which every line is thickened.
    """
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    # BASIC gives the same layout on every machine, whether or not Pillow finds libraqm.
    face = ImageFont.truetype(str(path), 46, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = face.getbbox(character, stroke_width=stroke)
    corner = ((RENDER_SIZE - right - left) / 2, (RENDER_SIZE - bottom - top) / 2)
    image = Image.new("L", (RENDER_SIZE, RENDER_SIZE), 0)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=face, stroke_width=stroke)
    return np.asarray(image)


def distort(glyphs_BHW: Tensor, distortion: Distortion, generator: torch.Generator) -> Tensor:
    """Return distorted images [B, 32, 32] in [0, 1].

    The order of the random draws is fixed: changing it changes every image of the dataset.

    Args:
        glyphs_BHW: rendered characters, uint8 [B, 64, 64].
        distortion: ranges of the random changes.
        generator: source of all random draws.
    """
    ink = glyphs_BHW[:, None].float() / 255
    if distortion.outlined:
        # Dilation minus erosion: a band of about 4 px around every edge.
        ink = F.max_pool2d(ink, 5, 1, 2) + F.max_pool2d(-ink, 3, 1, 1)
    warped = F.grid_sample(ink, _warp(len(ink), distortion, generator), align_corners=False)
    images = _reduce(warped, distortion.pixels, generator)[:, 0]
    images = images * _uniform(len(ink), 0.75, 1.0, generator)[:, None, None]
    if distortion.inverted:
        images = 1 - images
    images = images + distortion.noise * torch.randn(images.shape, generator=generator)
    return images.clamp(0, 1)


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return torch.rand(count, generator=generator) * (high - low) + low


def _warp(batch: int, distortion: Distortion, generator: torch.Generator) -> Tensor:
    """Sampling grids [B, 64, 64, 2] of a random affine map and a smooth displacement."""

    def uniform(low: float, high: float) -> Tensor:
        return _uniform(batch, low, high, generator)

    def symmetric(limit: float) -> Tensor:
        return uniform(-limit, limit)

    angle, scale = symmetric(distortion.degrees).deg2rad(), 1 / uniform(*distortion.scale)
    cos, sin, shear = angle.cos() * scale, angle.sin() * scale, symmetric(distortion.shear)
    width = uniform(1 - distortion.stretch, 1 + distortion.stretch)
    shift_x, shift_y = symmetric(distortion.shift), symmetric(distortion.shift)
    rows = [
        torch.stack([cos / width, cos * shear - sin, shift_x], -1),
        torch.stack([sin / width, sin * shear + cos, shift_y], -1),
    ]
    affine = torch.stack(rows, dim=1)
    grid = F.affine_grid(affine, [batch, 1, RENDER_SIZE, RENDER_SIZE], align_corners=False)
    bumps = torch.randn(batch, 2, 5, 5, generator=generator) * distortion.elastic
    return grid + F.interpolate(bumps, size=RENDER_SIZE, mode="bicubic").permute(0, 2, 3, 1)


def _reduce(images: Tensor, pixels: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Images [B, 1, 32, 32], each reduced to a random resolution and enlarged again."""
    reduced = torch.empty(len(images), 1, SIZE, SIZE)
    low, high = pixels
    sides = torch.randint(low, high + 1, (len(images),), generator=generator)
    for side in sides.unique().tolist():
        small = F.interpolate(images[sides == side], size=side, mode="area")
        reduced[sides == side] = F.interpolate(small, size=SIZE, mode="bicubic", align_corners=False)
    return reduced


@cache
def draw_split(per_domain: int, key: int) -> Split:
    """Draw `per_domain` images of every class in every domain, with all random draws seeded by `key`."""
    generator = torch.Generator().manual_seed(key)
    labels = np.repeat(np.arange(len(CHARACTERS)), per_domain)
    images = []
    for distortion in DOMAINS.values():
        fonts = torch.randint(len(FONTS), (len(labels),), generator=generator).tolist()
        rendered = np.stack([render(CHARACTERS[c], FONTS[f]) for c, f in zip(labels, fonts, strict=True)])
        images.append((distort(torch.from_numpy(rendered), distortion, generator) * 255).round().byte().numpy())
    domains = np.repeat(np.arange(len(DOMAINS)), len(labels))
    return Split(ImageArray(np.concatenate(images)), np.tile(labels, len(DOMAINS)), domains)


def glyphs(train_per_domain: int = 8, test_per_domain: int = 2) -> Source:
    """Return 100 classes × 6 domains × (8 training + 2 test) images of 32 px.

    Args:
        train_per_domain: training images of each class in each domain.
        test_per_domain: test images of each class in each domain.
    """
    names = [class_name(character) for character in CHARACTERS]
    return Source(
        names,
        prompts(names, TEMPLATES),
        train=draw_split(train_per_domain, key=0),
        test=draw_split(test_per_domain, key=1),
        domain_names=list(DOMAINS),
    )
