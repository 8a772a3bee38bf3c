"""How fast training is: loading, the step, and both together, beside a plain loop and the loop of the published code.

    python benchmarks/train.py                                      # the tiny CLIP on digits, on the CPU
    python benchmarks/train.py --model ViT-B-16 --batch 8 --steps 2 --precision bf16-mixed
    python benchmarks/train.py --model ViT-B-16 --images 375x500 --batch 128 --device cuda

Weights and images are random, so nothing is downloaded. Every repetition measures each of the rows once, in turn; the
table has the median and the range. The rows:

- loading: the batches of the loader, and nothing else.
- step: forward, backward and update on one batch that stays on the device.
- plain loop: loader and step in a loop of a few lines.
- mergestream: the same data and step under Lightning, as train.py runs it.
- published: float32, torchvision's transforms in a DataLoader, as the code of MagMax trains.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from mergestream.data.images import ImageArray, ImageFiles
from mergestream.data.loaders import Loading, spare_workers
from mergestream.data.source import Source, Split
from mergestream.data.stream import TaskStream
from mergestream.data.tasks import Task
from mergestream.methods.method import Method
from mergestream.models.clip import TextHead
from mergestream.models.tiny import tiny
from mergestream.models.transforms import Transforms, clip_transforms
from mergestream.runtime import processes
from mergestream.runtime.precision import autocast
from mergestream.training.fit import silence_lightning
from mergestream.training.learner import Learner

WARM = 2  # steps before the clock starts
CLASSES = 10
CIFAR_IMAGES = 50_000 * 10  # of CIFAR100 in ten epochs
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16, without sparsity
ADAM = {"lr": 1e-5, "weight_decay": 0.1}


@dataclass
class Bench:
    """What is measured.

    Args:
        encoder: the image tower.
        head: text head over the classes.
        stream: the data.
        device, precision: where and how to compute.
        steps: of each measurement.
        workers: of the published loop.
    """

    encoder: nn.Module
    head: TextHead
    stream: TaskStream
    device: torch.device
    precision: str
    steps: int
    workers: int

    @property
    def batch(self) -> int:
        return self.stream.batch_size

    def batches(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches on the device, epoch after epoch."""
        loader = self.stream.train_dataloader()
        for epoch in range(1 << 30):
            loader.batch_sampler.set_epoch(epoch)
            yield from self.stream.on_device(loader, self.device)

    def optimizer(self) -> torch.optim.Optimizer:
        fused = self.precision == "bf16-mixed" or None
        return torch.optim.AdamW(self.encoder.parameters(), fused=fused, **ADAM)

    def step(self, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor, weights: Tensor) -> None:
        with autocast(self.device, self.precision):
            logits = self.head(self.encoder(images))
            loss = (weights * F.cross_entropy(logits, labels, reduction="none")).sum()
        loss.backward()
        nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def rate(self, work: Iterator[Any]) -> float:
        """Images per second of an iterator that does a step each time."""
        for _ in islice(work, WARM):
            pass
        self.synchronize()
        began = time.perf_counter()
        for _ in islice(work, self.steps):
            pass
        self.synchronize()
        return self.steps * self.batch / (time.perf_counter() - began)

    def loading(self) -> float:
        return self.rate(self.batches())

    def alone(self) -> float:
        batch, optimizer = next(self.batches()), self.optimizer()
        return self.rate(self.step(optimizer, *batch) for _ in range(1 << 30))

    def plain(self) -> float:
        optimizer = self.optimizer()
        return self.rate(self.step(optimizer, *batch) for batch in self.batches())

    def lightning(self) -> float:
        clock = Clock(self)
        learner = Learner(
            self.encoder, self.head, range(CLASSES), lambda p: self.optimizer(), 0.1, Method("seq"), parts=(0, 0)
        )
        trainer = pl.Trainer(
            accelerator="gpu" if self.device.type == "cuda" else "cpu",
            devices=1,
            precision=self.precision,
            max_epochs=-1,
            max_steps=WARM + self.steps,
            gradient_clip_val=1.0,
            callbacks=[clock],
            logger=False,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(learner, datamodule=self.stream)
        self.encoder.to(self.device)
        self.head.to(self.device)
        return self.steps * self.batch / clock.seconds

    def published(self) -> float:
        """One image at a time through torchvision's transforms, float32, and a loop that reads the loss."""
        data = Published(self.stream.source.train, self.stream.transforms)
        loader = DataLoader(data, self.batch, shuffle=True, num_workers=self.workers, pin_memory=True, drop_last=True)
        optimizer = torch.optim.AdamW(self.encoder.parameters(), **ADAM)

        def train() -> Iterator[float]:
            for images, labels in cycle(loader):
                logits = self.head(self.encoder(images.to(self.device)))
                loss = F.cross_entropy(logits, labels.to(self.device))
                loss.backward()
                nn.utils.clip_grad_norm_(self.encoder.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                yield loss.item()

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pinned memory without a GPU
            return self.rate(train())


class Clock(pl.Callback):
    """Times the steps of a training after the first ones."""

    def __init__(self, bench: Bench):
        self.bench, self.began, self.seconds = bench, 0.0, 0.0

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == WARM:
            self.bench.synchronize()
            self.began = time.perf_counter()

    def on_train_end(self, *_: Any) -> None:
        self.bench.synchronize()
        self.seconds = time.perf_counter() - self.began


class Published(Dataset):
    """Images as the published code loads them."""

    def __init__(self, split: Split, transforms: Transforms):
        self.split, self.transform = split, transforms.train

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.split.images[index]), int(self.split.labels[index])


def images_of(shape: str, count: int, folder: Path) -> ImageArray | ImageFiles:
    """Random images: JPEGs of ``HEIGHTxWIDTH``, or an array in memory for small ones."""
    height, width = map(int, shape.split("x"))
    draw = np.random.default_rng(0)
    if height * width <= 64 * 64:
        return ImageArray(draw.integers(0, 256, (count, height, width, 3), dtype=np.uint8))
    coarse = Image.fromarray(draw.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize((width, height))
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for path in paths:
        coarse.save(path, quality=90)
    return ImageFiles(paths)


def model_of(name: str) -> tuple[nn.Module, int, Transforms, float]:
    """Encoder, dimension of its features, transforms, and scale of the logits."""
    if name == "tiny":
        clip = tiny()
        return clip.encoder, clip.model.text_projection.shape[1], clip.transforms, 100.0
    encoder: Any = open_clip.create_model(name).visual
    size = encoder.image_size
    side = size if isinstance(size, int) else size[0]
    return encoder, encoder.output_dim, clip_transforms(side, (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)), 100.0


def flops(bench: Bench) -> float:
    """Floating-point operations of a training step, for one image."""
    batch, optimizer = next(bench.batches()), bench.optimizer()
    with FlopCounterMode(display=False) as counter:
        bench.step(optimizer, *batch)
    return counter.get_total_flops() / bench.batch


def peak(device: torch.device, precision: str) -> float:
    """Operations per second: of the card's data sheet, or of a matrix product measured here."""
    if device.type == "cuda" and precision != "32-true":
        for name, value in PEAKS.items():
            if name in torch.cuda.get_device_name(device):
                return value
    a = torch.randn(2048, 2048, device=device, dtype=torch.float32 if precision == "32-true" else torch.bfloat16)
    best = 0.0
    for _ in range(5):
        began = time.perf_counter()
        (a @ a).sum().item()
        best = max(best, 2 * 2048**3 / (time.perf_counter() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny", help="tiny, or a name of open_clip.list_models()")
    parser.add_argument("--images", default="32x32", help="height and width; larger than 64x64 are JPEG files")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="32-true", help="32-true, bf16-mixed or 16-mixed")
    parser.add_argument("--augment", default="auto", help="pil, device, or auto: device on a GPU")
    parser.add_argument("--rows", default="loading,step,plain loop,mergestream,published")
    arguments = parser.parse_args()
    silence_lightning()
    warnings.filterwarnings("ignore", message=".*No pretrained weights.*|.*lr_scheduler.step.*")
    with tempfile.TemporaryDirectory() as folder:
        measure(arguments, Path(folder))


def measure(arguments: argparse.Namespace, folder: Path) -> None:
    device = torch.device(arguments.device)
    encoder, dimension, transforms, scale = model_of(arguments.model)
    count = min(4096, arguments.batch * (arguments.steps + WARM))
    split = Split(images_of(arguments.images, count, folder), np.arange(count) % CLASSES)
    source = Source([str(c) for c in range(CLASSES)], [[str(c)] for c in range(CLASSES)], split, split)
    everything = np.arange(count)
    augment = arguments.augment
    if augment == "auto":
        augment = "device" if device.type == "cuda" else "pil"
    workers = spare_workers(source, device, augment == "device")
    loading = Loading(augment, workers, pin=device.type == "cuda")
    task = Task("all", list(range(CLASSES)), everything, everything[:0], everything)
    stream = TaskStream(source, [task], transforms, batch_size=arguments.batch, seed=0, loading=loading)
    head = TextHead(F.normalize(torch.randn(CLASSES, dimension), dim=-1), scale)
    published = max(0, processes.cores() - 1) if device.type == "cuda" else 0
    bench = Bench(
        encoder.to(device).train(), head.to(device), stream, device, arguments.precision, arguments.steps, published
    )
    rows: dict[str, Callable[[], float]] = {
        "loading": bench.loading,
        "step": bench.alone,
        "plain loop": bench.plain,
        "mergestream": bench.lightning,
        "published": bench.published,
    }
    rows = {name: rows[name] for name in arguments.rows.split(",")}
    found: dict[str, list[float]] = {name: [] for name in rows}
    for _ in range(arguments.repeats):
        for name, work in rows.items():
            found[name].append(work())
    report(arguments, bench, found)


def report(arguments: argparse.Namespace, bench: Bench, found: dict[str, list[float]]) -> None:
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{arguments.model}, images {arguments.images}, batch {bench.batch}, {arguments.precision}, {name}, crops by "
        f"{bench.stream.loading.augment}, {bench.stream.loading.workers} workers, torch {torch.__version__}, "
        f"{arguments.repeats} repetitions of {arguments.steps} steps"
    )
    print("| | images/s | range |\n|---|---|---|")
    for row, rates in found.items():
        print(f"| {row} | {statistics.median(rates):.1f} | {min(rates):.1f} – {max(rates):.1f} |")
    for ratio in (("mergestream", "plain loop"), ("mergestream", "step"), ("mergestream", "published")):
        if all(row in found for row in ratio):
            pairs = [ours / theirs for ours, theirs in zip(*(found[row] for row in ratio), strict=True)]
            print(f"{ratio[0]} / {ratio[1]}: {statistics.median(pairs):.3f} ({min(pairs):.3f} – {max(pairs):.3f})")
    if "step" in found and "mergestream" in found:
        each, most = flops(bench), peak(bench.device, arguments.precision)
        together, alone = (statistics.median(found[row]) for row in ("mergestream", "step"))
        share = (
            f"{together * each / most:.1%} of {most / 1e12:.2f} TFLOP/s, {alone * each / most:.1%} by the step alone"
        )
        print(f"{each / 1e9:.2f} GFLOP for each image: {share}")
        print(f"ten epochs of CIFAR100: {CIFAR_IMAGES / together / 60:.0f} min, without evaluation")
    print(f"memory peak {memory(bench.device) / 2**30:.2f} GiB")


def memory(device: torch.device) -> int:
    """Bytes that were used at most."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
