"""Images held in memory as one array."""

from __future__ import annotations

import numpy as np
from PIL import Image


class Pictures:
    """A uint8 array [N, H, W] or [N, H, W, 3] read as N PIL images."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])
