"""Collections of images by index: in memory, in files, or parts of others."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image


class Images(Protocol):
    """N images by index, opened only when asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image.Image: ...


class Pictures:
    """A uint8 array [N, H, W] or [N, H, W, 3] in memory."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


class ImageFiles:
    """One file per image."""

    def __init__(self, paths: Sequence[str | Path]):
        self.paths = [str(path) for path in paths]  # strings: a Path takes five times the memory

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        with Image.open(self.paths[index]) as image:
            return image.convert("RGB")


class Joined:
    """Several collections, one after the other."""

    def __init__(self, parts: Sequence[Images]):
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Image.Image:
        number = bisect_right(self.ends, index)
        return self.parts[number][index - (self.ends[number - 1] if number else 0)]


class Chosen:
    """The images at the given positions of a collection."""

    def __init__(self, images: Images, positions: np.ndarray):
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[int(self.positions[index])]


def files_of(images: Images) -> Iterator[tuple[int, str]]:
    """(position, path) of every image that lies in a file of its own."""
    if isinstance(images, ImageFiles):
        yield from enumerate(images.paths)
    elif isinstance(images, Joined):
        for part, end in zip(images.parts, images.ends, strict=True):
            yield from ((end - len(part) + position, path) for position, path in files_of(part))
    elif isinstance(images, Chosen):
        paths = dict(files_of(images.images))
        yield from ((n, paths[p]) for n, p in enumerate(images.positions.tolist()) if p in paths)
