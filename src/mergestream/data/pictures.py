"""Images held in memory as one array."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image


class Pictures(Sequence):
    """A uint8 array [N, H, W] read as N greyscale PIL images."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])
