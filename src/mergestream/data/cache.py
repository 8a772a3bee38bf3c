"""Decoded images of a dataset, in files that are mapped into memory."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import xxhash
from PIL import Image

from mergestream.data.decode import open_picture
from mergestream.data.images import Images, image_paths
from mergestream.data.integrity import fingerprint
from mergestream.data.source import Source, Split
from mergestream.models.transforms import CROP_SCALE
from mergestream.runtime import files, processes
from mergestream.runtime.errors import UserError, first_line
from mergestream.runtime.lock import turn

VERSION = 1  # of the files
CHUNK = 64  # images that are opened before any of them is used
MB = 2**20
LARGE = 100 * MB  # from which on a notice says what is written


class DecodedImages:
    """RGB images in one file of pixels.

    Args:
        path: the file.
        sizes: height and width of each image, int64 [N, 2].
    """

    def __init__(self, path: Path, sizes: np.ndarray):
        self.path, self.sizes = path, sizes
        self.ends = (sizes.prod(1) * 3).cumsum()

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Image.Image:
        height, width = self.sizes[index].tolist()
        end = int(self.ends[index])
        return Image.fromarray(self.pixels[end - height * width * 3 : end].reshape(height, width, 3))

    @cached_property
    def pixels(self) -> np.ndarray:
        """The file, mapped into memory."""
        return np.memmap(self.path, dtype=np.uint8, mode="r")

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if key != "pixels"}  # each process maps the file itself


def shortest_side(size: int) -> int:
    """Return the shorter side in px that images are reduced to, so that 0.9 of it are a crop of `size` px."""
    return math.ceil(size / CROP_SCALE[0])


def cached(source: Source, folder: Path, mode: bool | str, size: int) -> tuple[Source, int | None]:
    """Return a dataset whose image files are decoded once.

    Args:
        source: the dataset.
        folder: where the decoded images are kept.
        mode: ``data.cache``: false; auto, which keeps images that are no larger than a crop needs, as they are; or
            true, which also keeps larger ones, reduced to what a crop needs.
        size: side of a crop in px.

    Returns:
        The dataset, and the shorter side that images were reduced to; None if they are as they were.
    """
    side = shortest_side(size)
    splits = (source.train, source.test)
    paths = [[path for _, path in image_paths(split.images)] for split in splits]
    if mode is False or any(len(of) != len(split) for of, split in zip(paths, splits, strict=True)):
        return source, None  # images without a file of their own are in memory
    reduces = any(min(size) > side for size in _sizes(paths[0] + paths[1]))  # of photos, the first one decides
    if mode == "auto" and reduces:
        return source, None
    try:
        train, test = (_cached(split, of, folder, side) for split, of in zip(splits, paths, strict=True))
    except (UserError, OSError) as error:
        processes.say(f"{first_line(error)}; images are decoded again in every epoch")
        return source, None
    return replace(source, train=train, test=test), side if reduces else None


def _cached(split: Split, paths: Sequence[str], folder: Path, side: int) -> Split:
    """Return a split with decoded images. Where they are not there yet, one of all processes writes them first."""
    names = "\0".join([*paths, str(side)]).encode(errors="surrogateescape")
    name = f"decoded-{xxhash.xxh3_64_hexdigest(names)}"
    pixels, index = folder / f"{name}.bin", folder / f"{name}.json"
    status = f"{VERSION}-{fingerprint([paths])}"
    lock = folder / f"_{name}"  # is there while a process writes, and after one that was killed
    images, _ = (None, "") if lock.exists() else _read(pixels, index, status)
    if images is None:
        with turn(lock, f"writes {pixels}"):
            images, reason = _read(pixels, index, status)  # another process may just have written them
            if images is None:
                if reason:
                    processes.say(f"{reason}; decoding again")
                _require_space(folder, sum(math.prod(_reduced(*size, side)) * 3 for size in _sizes(paths)))
                _write(paths, pixels, index, side, status)
                images, _ = _read(pixels, index, status)
    if images is None:
        raise UserError(f"{pixels} cannot be read back as it was written")
    return replace(split, images=images)


def _read(pixels: Path, index: Path, status: str) -> tuple[Images | None, str]:
    """Return the decoded images, or None and why those that are there cannot be used."""
    if not index.exists():
        return None, ""
    with suppress(UserError, OSError, ValueError):
        content = files.read_json(index, "status", "sizes", "xxh3_128", own=True)
        if content["status"] != status:
            return None, f"{index} was made for other images or by another version"
        images = DecodedImages(pixels, np.array(content["sizes"], dtype=np.int64).reshape(-1, 2))
        if pixels.stat().st_size == images.ends[-1] and _checksum(images.pixels) == content["xxh3_128"]:
            return images, ""
    return None, f"{pixels} was altered (its checksum differs)"


def _write(paths: Sequence[str], pixels: Path, index: Path, side: int, status: str) -> None:
    """Decode images and write their pixels, then the index, which makes them valid."""
    index.unlink(missing_ok=True)
    digest = xxhash.xxh3_128()
    sizes: list[tuple[int, int]] = []
    with files.whole(pixels) as partial, partial.open("wb") as file, ThreadPoolExecutor(processes.cores()) as pool:
        for start in range(0, len(paths), CHUNK):
            images = pool.map(lambda path: _decoded(path, side), paths[start : start + CHUNK])
            sizes += _append(images, file, digest)
    files.write_json(index, {"status": status, "sizes": sizes, "xxh3_128": digest.hexdigest()})


def _append(images: Iterable[np.ndarray], file: BinaryIO, digest: xxhash.xxh3_128) -> list[tuple[int, int]]:
    sizes = []
    for image in images:
        digest.update(image.data)
        file.write(image.data)
        sizes.append(image.shape[:2])
    return sizes


def _decoded(path: str, side: int) -> np.ndarray:
    """Return an image, reduced so that its shorter side has at most `side` px."""
    image = open_picture(path)
    if min(image.size) > side:
        width, height = _reduced(*image.size, side)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return np.ascontiguousarray(image)


def _reduced(width: int, height: int, side: int) -> tuple[int, int]:
    share = min(1.0, side / min(width, height))
    return round(width * share), round(height * share)


def _sizes(paths: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Yield the width and height of each image; only a chunk of files is opened for the first answer."""
    with ThreadPoolExecutor(processes.cores()) as pool:
        for start in range(0, len(paths), CHUNK):
            yield from pool.map(_size, paths[start : start + CHUNK])


def _size(path: str) -> tuple[int, int]:
    """Return width and height as the header of a file gives them."""
    with open(path, "rb") as file, Image.open(file) as image:
        return image.size


def _require_space(folder: Path, needed: int) -> None:
    """Say how much is about to be written, and check that the disk has room for it."""
    place = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(f"data.cache needs {needed / MB:.0f} MB in {folder}, and {free / MB:.0f} MB are free")
    if needed > LARGE:
        processes.say(f"writing {needed / MB:.0f} MB of decoded images to {folder}, once")


def _checksum(pixels: np.ndarray) -> str:
    return xxhash.xxh3_128_hexdigest(pixels.data)
