"""Speed of predict.py beside plain loops: python benchmarks/predict.py [--models tiny,ViT-B-32] [--pictures 256]

Writes JPEGs of 500 × 375, and classifies them with models of random weights in turn by

- encoder: a plain loop over the encoder, on pictures that are decoded and transformed already,
- plain: a plain loop that opens, transforms and encodes the pictures, one batch after the other,
- predict: what predict.py does.

Prints the median images per second of each, and the medians of the paired ratios of predict to the other two. On a
machine with other work, images per second of processor time (--processor) tell more.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image

from mergestream.classifier.classifier import Classifier
from mergestream.models import tiny
from mergestream.models.clip import TextHead
from mergestream.models.pretrained import PREPROCESSING, preprocessing
from mergestream.models.transforms import clip_transforms

CLASSES = 100


def classifier(name: str) -> Classifier:
    """A classifier of random weights; tiny is the embedded CLIP."""
    if name == "tiny":
        clip = tiny.tiny()
        encoder, transforms = clip.encoder, clip.transforms
    else:
        logging.disable()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            encoder = open_clip.create_model(name, load_weights=False).visual
        values = preprocessing(name, {}, encoder.image_size)
        transforms = clip_transforms(values["size"], **{key: values[key] for key in PREPROCESSING})
    weight = torch.nn.functional.normalize(torch.randn(CLASSES, encoder.output_dim), dim=-1)
    return Classifier(encoder.eval(), TextHead(weight, 100.0), [str(c) for c in range(CLASSES)], transforms)


def write(folder: Path, count: int) -> list[Path]:
    """Smooth noise as JPEGs, which takes as long to decode as photos do."""
    draw, paths = np.random.default_rng(0), []
    for number in range(count):
        pixels = draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        paths.append(folder / f"{number:05}.jpg")
        Image.fromarray(pixels).resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def loops(model: Classifier, paths: list[Path], size: int) -> dict[str, Callable[[], None]]:
    """What is timed, by name."""
    batches = [paths[i : i + size] for i in range(0, len(paths), size)]

    def transformed(batch: list[Path]) -> torch.Tensor:
        return torch.stack([model.transforms.eval(Image.open(path).convert("RGB")) for path in batch])

    ready = [transformed(batch) for batch in batches]

    @torch.no_grad()
    def encoder() -> None:
        for images in ready:
            model.head(model.encoder(images))

    @torch.no_grad()
    def plain() -> None:
        for batch in batches:
            model.head(model.encoder(transformed(batch))).softmax(-1).topk(3)

    def predict() -> None:
        assert len(list(model.answers(paths, top=3, size=size))) == len(paths)

    return {"encoder": encoder, "plain": plain, "predict": predict}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="tiny,ViT-B-32,ViT-B-16", help="tiny, or names of open_clip, with commas")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--batch", type=int, default=64, help="pictures in a forward pass")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor", action="store_true", help="count seconds of processor time, of all threads")
    words = parser.parse_args()
    clock = time.process_time if words.processor else time.perf_counter
    with tempfile.TemporaryDirectory(prefix="predict-") as folder:
        paths = write(Path(folder), words.pictures)
        print(f"{'images/s':10}  encoder    plain  predict  predict/encoder  predict/plain")
        for name in words.models.split(","):
            timed = loops(classifier(name), paths, words.batch)
            timed["encoder"]()  # allocates
            rates: dict[str, list[float]] = {key: [] for key in timed}
            for _ in range(words.rounds):
                for key, loop in timed.items():
                    began = clock()
                    loop()
                    rates[key].append(len(paths) / (clock() - began))
            medians = "  ".join(f"{statistics.median(found):7.1f}" for found in rates.values())
            ratios = [
                statistics.median(p / other for p, other in zip(rates["predict"], rates[key], strict=True))
                for key in ("encoder", "plain")
            ]
            print(f"{name:10}  {medians}  {ratios[0]:15.2f}  {ratios[1]:13.2f}", flush=True)


if __name__ == "__main__":
    main()
