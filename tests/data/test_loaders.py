"""Loaders: what works ahead, workers that serve all tasks, and evaluation images that stay in memory."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
import torch
from helpers import command, noise
from safetensors.torch import load_file

from mergestream.data.datasets import EvalImages, TrainImages
from mergestream.data.images import ImageArray, ImageFiles
from mergestream.data.loaders import EvalLoader, Kept, TrainLoader, Workers, ahead, spare_workers
from mergestream.data.sampling import KeyedBatchSampler
from mergestream.data.source import Source, Split
from mergestream.models.transforms import clip_transforms

TRANSFORMS = clip_transforms(8, (0.5,) * 3, (0.5,) * 3)


def split_of(count, images=None):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 10, 12, 3), dtype=np.uint8)
    return Split(ImageArray(pixels) if images is None else images, np.arange(count))


def test_batches_come_in_order_from_a_thread():
    makers = []

    def made():
        for number in range(20):
            makers.append(threading.current_thread())
            yield number

    assert list(ahead(made())) == list(range(20))
    assert threading.current_thread() not in makers
    assert list(ahead([])) == []


def test_an_error_in_the_thread_reaches_the_training_at_its_batch():
    def made():
        yield 0
        raise ValueError("a bad image")

    batches = ahead(made())
    assert next(batches) == 0
    with pytest.raises(ValueError, match="a bad image"):
        next(batches)


def test_a_loader_that_is_left_stops_its_thread():
    before = threading.active_count()
    batches = ahead(iter(range(1000)))
    next(batches)
    batches.close()
    assert threading.active_count() == before


class Recorded(TrainImages):
    """Sends the worker that made a batch instead of the labels."""

    def __getitems__(self, draws):
        pixels, _, weights = super().__getitems__(draws)
        return pixels, torch.tensor(os.getpid()), weights


@pytest.mark.parametrize("augment", ["pil", "device"])
def test_workers_serve_all_tasks_and_change_no_bit(augment):
    images = Recorded(split_of(40), TRANSFORMS, 5, resize=augment == "pil")
    found, makers = {}, {}
    for count in (0, 2):
        workers = Workers(images, count, pin=False)
        for task in (0, 1):
            batches = KeyedBatchSampler(np.arange(40), 8, seed=5, task=task)
            loader = TrainLoader(workers, batches)
            assert len(loader) == 5
            for epoch in (0, 1):
                batches.set_epoch(epoch)
                for number, (pixels, pid, _) in enumerate(loader):
                    makers.setdefault(count, set()).add(pid.item())
                    parts = pixels if isinstance(pixels, tuple) else (pixels,)
                    earlier = found.setdefault((task, epoch, number), parts)
                    assert all(torch.equal(a, b) for a, b in zip(parts, earlier, strict=True))
    assert makers[0] == {os.getpid()}
    assert len(makers[2]) == 2
    assert len(found) == 20


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("budget", [0, 9 * 8 * 8 * 3, 1 << 20])
def test_evaluation_transforms_an_image_once_if_the_budget_lasts(workers, budget, monkeypatch):
    made = []

    def recorded(self, positions, original=EvalImages.__getitems__):
        made.extend(positions)
        return original(self, positions)

    monkeypatch.setattr(EvalImages, "__getitems__", recorded)
    images, kept = EvalImages(split_of(20), TRANSFORMS), Kept(budget)
    positions, tasks = np.arange(20)[::-1], np.repeat([0, 1], 10)
    loader = EvalLoader(images, "test", kept, np.split(positions, 5), np.split(tasks, 5), num_workers=workers)
    passes = [list(loader) for _ in range(3)]
    count = len(made)
    assert len(loader) == len(passes[0]) == 5
    for one in passes:
        assert torch.equal(torch.cat([p for p, *_ in one]), torch.cat([p for p, *_ in passes[0]]))
        assert torch.cat([labels for _, labels, _ in one]).tolist() == positions.tolist()
        assert torch.cat([task for *_, task in one]).tolist() == tasks.tolist()
    assert torch.equal(passes[0][0][0], EvalImages(split_of(20), TRANSFORMS).__getitems__([19, 18, 17, 16]))
    if not workers:  # which count in processes of their own
        repeated = {0: 20, 9 * 8 * 8 * 3: 12, 1 << 20: 0}[budget]  # two batches of four fit into the second
        assert count == 20 + 2 * repeated
    other = EvalLoader(images, "test", kept, [positions[3:5]], [tasks[3:5]])
    assert torch.equal(next(iter(other))[0], torch.cat([p for p, *_ in passes[0]])[3:5])


def test_cores_that_are_left_become_workers(monkeypatch):
    monkeypatch.setattr("mergestream.runtime.processes.cores", lambda: 8)
    files, arrays = split_of(2, ImageFiles(["a.png", "b.png"])), split_of(2)
    sources = {name: Source(["a", "b"], [["a"], ["b"]], split, split) for name, split in (("f", files), ("a", arrays))}
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert [spare_workers(sources[name], cpu, False) for name in "fa"] == [0, 0]
    assert [spare_workers(sources[name], gpu, True) for name in "fa"] == [7, 0]
    assert spare_workers(sources["a"], gpu, False) == 7
    for name, value in {"LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "8", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert spare_workers(sources["f"], gpu, True) == 0


def test_training_on_crops_of_the_device_is_training_on_those_of_pil(tmp_path):
    """The images differ by 1 of 255 levels, so the weights differ little; and a run never continues with the other."""
    towers = {}
    for augment in ("pil", "device"):
        words = [f"root={tmp_path}/{augment}", *noise(), "tasks=1", "epochs=1"]
        assert (outcome := command("train.py", *words, f"data.augment={augment}")).code == 0, outcome.err
        towers[augment] = load_file(next(tmp_path.glob(f"{augment}/**/encoder.safetensors")))
    again = command("train.py", *words, "data.augment=device")
    assert "already finished" in again.out, again.err
    start = load_file(next(tmp_path.glob("pil/_base/*.safetensors")))

    def distance(one, two):
        return sum((one[name] - two[name]).square().sum() for name in start) ** 0.5

    assert 0 < distance(towers["pil"], towers["device"]) < 0.02 * distance(towers["pil"], start)
    next(tmp_path.glob("device/**/task-00/evaluation.json")).unlink()
    next(tmp_path.glob("device/**/metrics.json")).unlink()
    outcome = command("train.py", *words, "data.augment=pil")
    assert outcome.code == 1
    assert "was started with augment=device, and this command has augment=pil" in outcome.err
    assert "Write data.augment=device." in outcome.err
