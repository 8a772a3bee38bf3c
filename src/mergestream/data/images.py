"""Indexable collections of images: in memory, in files, concatenations and subsets."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from mergestream.data.decode import open_picture


class Images(Protocol):
    """N images by index; each is opened when it is accessed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Image.Image: ...


class ImageArray:
    """Images in memory: a uint8 array, [N, H, W] for grey or [N, H, W, 3] for colour."""

    def __init__(self, pixels: np.ndarray):
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


class ImageFiles:
    """Image files, one per image, opened as RGB."""

    def __init__(self, paths: Sequence[str | Path]):
        self.paths = [str(path) for path in paths]  # a Path takes five times the memory of a string

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return open_picture(self.paths[index])


class ConcatImages:
    """The images of several collections in a row."""

    def __init__(self, parts: Sequence[Images]):
        self.parts = parts
        self.ends = list(accumulate(len(part) for part in parts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Image.Image:
        number = bisect_right(self.ends, index)
        return self.parts[number][index - (self.ends[number - 1] if number else 0)]


class SubsetImages:
    """The images at given positions of another collection."""

    def __init__(self, images: Images, positions: np.ndarray):
        self.images, self.positions = images, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Image.Image:
        return self.images[int(self.positions[index])]


def image_paths(images: Images) -> Iterator[tuple[int, str]]:
    """Yield (position, path) of every image that has a file of its own."""
    if isinstance(images, ImageFiles):
        yield from enumerate(images.paths)
    elif isinstance(images, ConcatImages):
        for part, end in zip(images.parts, images.ends, strict=True):
            yield from ((end - len(part) + position, path) for position, path in image_paths(part))
    elif isinstance(images, SubsetImages):
        paths = dict(image_paths(images.images))
        yield from ((n, paths[p]) for n, p in enumerate(images.positions.tolist()) if p in paths)
