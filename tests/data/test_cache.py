"""Decoded images on disk: the same pixels, made once, made anew when anything changed, and never in the way."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import command
from PIL import Image

from mergestream.data import cache
from mergestream.data.cache import cached, shortest_side
from mergestream.data.images import ConcatImages, ImageArray, ImageFiles, SubsetImages
from mergestream.data.source import Source, Split

SIZES = [(30, 40), (36, 36), (5, 7), (33, 20)]  # height and width, none larger than crops of 32 px need


def pictures(folder, sizes):
    """Write JPEGs; the last is stored on its side."""
    paths, draw = [], np.random.default_rng(0)
    for number, size in enumerate(sizes):
        paths.append(folder / f"{number}.jpg")
        exif = Image.Exif()
        exif[0x0112] = 6 if number == len(sizes) - 1 else 1
        Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)).save(paths[-1], exif=exif)
    return paths


def source_of(train, test):
    return Source(["a"], [["a"]], *(Split(images, np.zeros(len(images), dtype=np.int64)) for images in (train, test)))


def same(one, two):
    assert len(one) == len(two)
    return all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(one, two, strict=True))


@pytest.fixture
def source(tmp_path):
    """Four training images behind a subset of a concatenation, and two test images."""
    paths = pictures(tmp_path, SIZES)
    train = SubsetImages(ConcatImages([ImageFiles(paths[:3]), ImageFiles(paths[3:])]), np.array([3, 0, 2, 1]))
    return source_of(train, ImageFiles(paths[:2]))


def test_small_images_are_kept_as_they_are(source, tmp_path, capsys):
    folder = tmp_path / "cache"
    for _ in range(2):
        found, side = cached(source, folder, "auto", 32)
        assert side is None
        assert same(found.train.images, source.train.images)
        assert same(found.test.images, source.test.images)
        assert same(pickle.loads(pickle.dumps(found.train.images)), source.train.images)  # as workers get them
        assert found.train.images.path.parent == folder
    assert len(list(folder.iterdir())) == 4
    assert capsys.readouterr().err == ""


def test_large_images_are_reduced_if_that_is_asked_for(tmp_path):
    paths = pictures(tmp_path, [(100, 200), (90, 36), *SIZES])
    source = source_of(ImageFiles(paths), ImageFiles(paths[:1]))
    assert cached(source, tmp_path / "cache", "auto", 32) == (source, None)
    assert cached(source, tmp_path / "cache", False, 32) == (source, None)
    assert not (tmp_path / "cache").exists()
    found, side = cached(source, tmp_path / "cache", True, 32)
    assert side == shortest_side(32) == 36
    expected = Image.open(paths[0]).convert("RGB").resize((72, 36), Image.Resampling.BICUBIC)
    assert same([found.train.images[0], found.test.images[0]], [expected, expected])
    assert same([found.train.images[i] for i in range(1, 6)], [source.train.images[i] for i in range(1, 6)])


def test_images_in_memory_are_left_alone(tmp_path):
    source = source_of(ImageArray(np.zeros((2, 8, 8), dtype=np.uint8)), ImageFiles(pictures(tmp_path, SIZES)))
    assert cached(source, tmp_path / "cache", True, 32) == (source, None)


@pytest.mark.parametrize(("hurt", "says"), [("flip", "altered"), ("version", "another version"), ("cut", "altered")])
def test_a_damaged_cache_is_made_anew(hurt, says, source, tmp_path, capsys, monkeypatch):
    found, _ = cached(source, tmp_path / "cache", "auto", 32)
    path = found.train.images.path
    content = bytearray(path.read_bytes())
    if hurt == "version":
        monkeypatch.setattr(cache, "VERSION", cache.VERSION + 1)
    else:
        content[7] ^= 1
        path.write_bytes(content if hurt == "flip" else content[:-1])
    found, _ = cached(source, tmp_path / "cache", "auto", 32)
    assert same(found.train.images, source.train.images)
    said = capsys.readouterr().err
    assert says in said
    assert "decoding again" in said
    cached(source, tmp_path / "cache", "auto", 32)
    assert capsys.readouterr().err == ""


def test_an_image_that_changed_is_decoded_again(source, tmp_path):
    cached(source, tmp_path / "cache", "auto", 32)
    Image.new("RGB", (9, 9), "red").save(tmp_path / "2.jpg")
    found, _ = cached(source, tmp_path / "cache", "auto", 32)
    assert same(found.train.images, source.train.images)


def test_a_disk_that_is_too_small_is_said(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 10})())
    assert cached(source, tmp_path / "cache", "auto", 32) == (source, None)
    assert "images are decoded again in every epoch" in capsys.readouterr().err


def test_a_disk_that_fills_up_leaves_nothing(source, tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "_append", full)
    assert cached(source, tmp_path / "cache", "auto", 32) == (source, None)
    assert "No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_run_on_reduced_images_stays_one(photos, tmp_path):
    for number, path in enumerate(sorted(photos.rglob("*.jpg"))):
        Image.new("RGB", (90 + number, 120), (25 * number, 90, 30)).save(path)
    words = [f"root={tmp_path}/runs", "dataset=folder", f"dataset.path={photos}", "tasks=2", "epochs=1", "model=tiny"]
    assert (outcome := command("train.py", *words, "data.cache=true")).code == 0, outcome.err
    for script in ("merge.py", "train.py"):
        next(tmp_path.glob("runs/**/metrics.json")).unlink() if script == "train.py" else None
        outcome = command(script, *words)
        assert outcome.code == 1
        assert "was started with short_side=36, and this command has short_side=None" in outcome.err
        assert "Write data.cache=true." in outcome.err
    assert (outcome := command("train.py", *words, "data.cache=true")).code == 0, outcome.err
    assert (outcome := command("merge.py", *words, "data.cache=true")).code == 0, outcome.err


def test_one_large_image_is_enough_to_decide(tmp_path, monkeypatch):
    opened = []

    def recorded(path, original=cache._size):
        opened.append(path)
        return original(path)

    monkeypatch.setattr(cache, "_size", recorded)
    paths = [str(path) for path in pictures(tmp_path, [(90, 100), *SIZES])]
    source = source_of(ImageFiles(paths * 100), ImageFiles(paths))
    assert cached(source, tmp_path / "cache", "auto", 32) == (source, None)
    assert len(opened) <= cache.CHUNK


def test_what_cannot_be_read_back_is_not_used(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cache, "_checksum", lambda pixels: "another")
    assert cached(source, tmp_path / "cache", True, 32) == (source, None)
    assert "cannot be read back as it was written" in capsys.readouterr().err


def test_one_of_two_jobs_that_need_them_at_once_decodes_the_images(source, tmp_path, monkeypatch, capsys):
    looked, written = threading.Barrier(2, timeout=30), []

    def read(pixels, index, status, original=cache._read):
        found = original(pixels, index, status)
        if pixels.name not in vars(here):
            setattr(here, pixels.name, True)
            looked.wait()  # until both have seen that there are none
        return found

    def write(paths, pixels, *arguments, original=cache._write):
        written.append(pixels)
        original(paths, pixels, *arguments)

    here = threading.local()
    monkeypatch.setattr(cache, "_read", read)
    monkeypatch.setattr(cache, "_write", write)
    with ThreadPoolExecutor(2) as pool:
        for found, _ in pool.map(lambda _: cached(source, tmp_path / "cache", "auto", 32), range(2)):
            assert same(found.train.images, source.train.images)
            assert same(found.test.images, source.test.images)
    assert len(written) == len(set(written)) == 2  # training and test images, once each
    assert len(list((tmp_path / "cache").iterdir())) == 4
    assert capsys.readouterr().err == ""
