"""How many images a core loads: torchvision one by one, crops by Pillow, and crops that a device resizes.

    python benchmarks/loading.py [--repeats 5]

For JPEGs of 500 × 375 px, arrays of 32 × 32 px, and images decoded before to a shorter side of 256 px (data.cache).
Prints images per CPU-second of one thread, the best of the repetitions, for a model of 224 px.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from mergestream.data.crops import normalized
from mergestream.data.datasets import TrainImages
from mergestream.data.images import ImageArray, ImageFiles, Images
from mergestream.data.sampling import Draw
from mergestream.data.source import Split
from mergestream.models.transforms import clip_transforms

COUNT = 64
TRANSFORMS = clip_transforms(224, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28))


def kinds(folder: Path) -> dict[str, Images]:
    """Images by the name of their kind."""
    draw = np.random.default_rng(0)
    photo = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((500, 375))
    paths = [folder / f"{number}.jpg" for number in range(COUNT)]
    for path in paths:
        photo.save(path, quality=90)
    return {
        "JPEG, 500 × 375": ImageFiles(paths),
        "array, 32 × 32": ImageArray(draw.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)),
        "decoded, 341 × 256": ImageArray(np.stack([np.asarray(photo.resize((341, 256)))] * COUNT)),
    }


def rate(work: Callable[[], object], repeats: int) -> float:
    """Images per CPU-second of the fastest repetition."""
    best = 0.0
    for _ in range(repeats):
        began = time.process_time()
        work()
        best = max(best, COUNT / (time.process_time() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    draws = [Draw(0, 0, sample, 1.0) for sample in range(COUNT)]
    print("| images | torchvision | `pil` | `pil`, normalised | `device`, before the device |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, images in kinds(Path(folder)).items():
            split = Split(images, np.arange(COUNT))
            pil, device = (TrainImages(split, TRANSFORMS, 0, resize=resize) for resize in (True, False))
            ways: list[Callable[[], object]] = [
                lambda images=images: [TRANSFORMS.train(images[i]) for i in range(COUNT)],
                lambda pil=pil: pil.__getitems__(draws),
                lambda pil=pil: normalized(pil.__getitems__(draws)[0], TRANSFORMS.recipe),
                lambda device=device: device.__getitems__(draws),
            ]
            print(f"| {name} | {' | '.join(f'{rate(way, repeats):,.0f}' for way in ways)} |")


if __name__ == "__main__":
    main()
