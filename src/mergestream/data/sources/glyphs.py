"""Glyphs: 100 characters drawn in six domains with the fonts that matplotlib ships; the offline stand-in for CIFAR100.

Drawing is two steps. A *master* is a character set in one font at 64 px; `disturb` turns a batch of masters into
32 px pictures with a random warp, reduction, polarity and noise. The pre-training of the tiny CLIP draws with the
same two functions and milder settings, so that the domains below are partly new to it.
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

from mergestream.data.images import Pictures
from mergestream.data.source import Source, Split, prompts

# Look-alikes across scripts (Latin A, Greek Α, Cyrillic А; 3 and З) are left out: no image could tell them apart.
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

MASTER_SIZE = 64  # px; large enough that a warp and a reduction to 32 px lose nothing
SIZE = 32  # px of the finished picture


@dataclass(frozen=True)
class Look:
    """How masters become pictures; every range is drawn uniformly per picture.

    Args:
        degrees: rotation in [-degrees, degrees].
        shear: horizontal shear in [-shear, shear].
        scale: size of the character relative to its master.
        stretch: width against height, as a factor in [1 - stretch, 1 + stretch].
        shift: translation in [-shift, shift], as a fraction of half the picture.
        elastic: amplitude of a smooth random displacement, same unit as `shift`.
        pixels: side in px to which the picture is reduced before it is brought to 32 px (32: not at all).
        noise: standard deviation of additive Gaussian noise, for intensities in [0, 1].
        inverted: dark characters on a light ground.
        outlined: only the contour of the strokes is drawn.
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
    "plain": Look(),
    "rotated": Look(degrees=25),
    "coarse": Look(pixels=(9, 12)),
    "noisy": Look(noise=0.12),
    "inverted": Look(inverted=True),
    "outlined": Look(outlined=True, scale=(1.2, 1.5)),
}


def name(character: str) -> str:
    """Class name from the Unicode database: ``7`` is "digit seven", ``β`` is "greek small letter beta"."""
    return unicodedata.name(character).lower()


@cache
def master(character: str, font: str, stroke: int = 0) -> np.ndarray:
    """`character` in `font`, white on black, centred, uint8 [64, 64]; `stroke` thickens every line by so many px."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / font
    # BASIC: one layout engine on every machine, whether or not Pillow finds libraqm.
    face = ImageFont.truetype(str(path), 46, layout_engine=ImageFont.Layout.BASIC)
    left, top, right, bottom = face.getbbox(character, stroke_width=stroke)
    corner = ((MASTER_SIZE - right - left) / 2, (MASTER_SIZE - bottom - top) / 2)
    image = Image.new("L", (MASTER_SIZE, MASTER_SIZE), 0)
    ImageDraw.Draw(image).text(corner, character, fill=255, font=face, stroke_width=stroke)
    return np.asarray(image)


def disturb(masters_BHW: Tensor, look: Look, generator: torch.Generator) -> Tensor:
    """Pictures [B, 32, 32] in [0, 1] from masters uint8 [B, 64, 64], disturbed as `look` says."""
    batch = len(masters_BHW)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(batch, generator=generator) * (high - low) + low

    ink = masters_BHW[:, None].float() / 255
    if look.outlined:
        # Dilation minus erosion of the master: a band of some 4 px around every edge.
        ink = F.max_pool2d(ink, 5, 1, 2) + F.max_pool2d(-ink, 3, 1, 1)

    angle, scale = uniform(-look.degrees, look.degrees).deg2rad(), 1 / uniform(*look.scale)
    cos, sin, shear = angle.cos() * scale, angle.sin() * scale, uniform(-look.shear, look.shear)
    wide = uniform(1 - look.stretch, 1 + look.stretch)
    shift_x, shift_y = uniform(-look.shift, look.shift), uniform(-look.shift, look.shift)
    affine = torch.stack(
        [
            torch.stack([cos / wide, cos * shear - sin, shift_x], -1),
            torch.stack([sin / wide, sin * shear + cos, shift_y], -1),
        ],
        dim=1,
    )
    grid = F.affine_grid(affine, [batch, 1, MASTER_SIZE, MASTER_SIZE], align_corners=False)
    bumps = torch.randn(batch, 2, 5, 5, generator=generator) * look.elastic
    grid = grid + F.interpolate(bumps, size=MASTER_SIZE, mode="bicubic").permute(0, 2, 3, 1)
    warped = F.grid_sample(ink, grid, align_corners=False)

    pictures = torch.empty(batch, 1, SIZE, SIZE)
    low, high = look.pixels
    pixels = torch.randint(low, high + 1, (batch,), generator=generator)
    for side in pixels.unique().tolist():
        reduced = F.interpolate(warped[pixels == side], size=side, mode="area")
        pictures[pixels == side] = F.interpolate(reduced, size=SIZE, mode="bicubic", align_corners=False)
    pictures = pictures[:, 0] * uniform(0.75, 1.0)[:, None, None]
    if look.inverted:
        pictures = 1 - pictures
    pictures = pictures + look.noise * torch.randn(pictures.shape, generator=generator)
    return pictures.clamp(0, 1)


@cache
def draw_split(per_domain: int, key: int) -> Split:
    """`per_domain` pictures of every class in every domain, drawn once; all draws come from a generator of `key`."""
    generator = torch.Generator().manual_seed(key)
    labels = np.repeat(np.arange(len(CHARACTERS)), per_domain)
    pictures = []
    for look in DOMAINS.values():
        fonts = torch.randint(len(FONTS), (len(labels),), generator=generator).tolist()
        masters = np.stack([master(CHARACTERS[c], FONTS[f]) for c, f in zip(labels, fonts, strict=True)])
        pictures.append((disturb(torch.from_numpy(masters), look, generator) * 255).round().byte().numpy())
    domains = np.repeat(np.arange(len(DOMAINS)), len(labels))
    return Split(Pictures(np.concatenate(pictures)), np.tile(labels, len(DOMAINS)), domains)


def glyphs(train_per_domain: int = 8, test_per_domain: int = 2) -> Source:
    """The glyphs source: 100 classes × 6 domains × (8 train + 2 test) pictures of 32 px."""
    names = [name(character) for character in CHARACTERS]
    return Source(
        names,
        prompts(names, TEMPLATES),
        train=draw_split(train_per_domain, key=0),
        test=draw_split(test_per_domain, key=1),
        domain_names=list(DOMAINS),
    )
