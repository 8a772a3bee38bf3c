"""Decodes pictures in threads, ahead of the forward passes that take them."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mergestream.data.decode import open_picture, to_rgb
from mergestream.models.transforms import Transforms, before_normalization
from mergestream.runtime import processes
from mergestream.runtime.errors import first_line

Picture = str | Path | Image.Image
Decoded = tuple[Tensor | None, str | None]  # the pixels, or why there are none
AHEAD = 2  # batches that wait to be used


def batches(
    pictures: Iterable[Picture], transforms: Transforms, size: int
) -> Iterator[tuple[Tensor | None, list[str | None]]]:
    """Yield the pictures in batches of at most `size`.

    Args:
        pictures: paths, or images.
        transforms: of the model.
        size: pictures in a batch.

    Yields:
        The pixels of those that can be read, for `normalized`, or None if there are none; and for each picture why it
        cannot be read, or None.
    """
    source, decode = iter(pictures), _decoder(transforms)
    # Warning filters belong to the process, so they are set once here and not in each thread.
    with warnings.catch_warnings(), ThreadPoolExecutor(processes.cores(), "decoder") as pool:
        warnings.simplefilter("ignore")  # Pillow warns of unusual metadata
        waiting: deque[Future[Decoded]] = deque()
        try:
            while True:
                waiting.extend(pool.submit(decode, p) for p in islice(source, (1 + AHEAD) * size - len(waiting)))
                if not waiting:
                    return
                decoded = [waiting.popleft().result() for _ in range(min(size, len(waiting)))]
                pixels = [p for p, _ in decoded if p is not None]
                yield torch.stack(pixels) if pixels else None, [reason for _, reason in decoded]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _decoder(transforms: Transforms) -> Callable[[Picture], Decoded]:
    """Return a function that makes a picture uint8 [S, S, 3], or float32 [3, S, S] by transforms without a recipe."""
    shrink = transforms.eval if transforms.recipe is None else before_normalization(transforms.eval)

    def decode(picture: Picture) -> Decoded:
        try:
            image = to_rgb(picture) if isinstance(picture, Image.Image) else open_picture(picture)
            made = shrink(image)
        except Exception as error:  # each of thirty image formats raises exceptions of its own
            reason = getattr(error, "strerror", None) or first_line(error)
            return None, reason
        return made if isinstance(made, Tensor) else torch.from_numpy(np.array(made)), None

    return decode
