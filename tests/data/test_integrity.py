"""Corrupt image files: named, or left out where asked."""

from __future__ import annotations

import warnings
from threading import Event

import numpy as np
import pytest
from archives import codes, cut, load_photos, picture, save
from PIL.JpegImagePlugin import JpegImageFile

from mergestream.data import integrity
from mergestream.data.images import ImageArray, ImageFiles
from mergestream.data.source import Source, Split
from mergestream.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("any_checksum")


def forbid_decoding(monkeypatch):
    monkeypatch.setattr(integrity, "decode_error", lambda path: pytest.fail(f"{path} was decoded again"))


def test_a_corrupt_image_is_an_error(photos):
    cut(photos / "cat/2.jpg")
    with pytest.raises(UserError) as caught:
        load_photos(photos)
    assert str(caught.value).startswith(f"{photos}/cat/2.jpg is not a readable image (")
    assert "1 of 10 image files are corrupt" in str(caught.value)
    assert "write data.skip_corrupt=true" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (photos.parent / "results").exists()


def test_corrupt_images_are_left_out_where_asked(photos, capsys, monkeypatch):
    bad = [photos / "cat/2.jpg", photos / "dog/4.jpg"]
    cut(bad[0])
    bad[1].write_text("no image")
    for _ in range(2):
        source = load_photos(photos, "data.skip_corrupt=true")
        assert "left out 2 corrupt image files of 10" in capsys.readouterr().err
        assert source.notes["left_out_as_corrupt"] == sorted(map(str, bad))
        left = [(label, number) for split in (source.train, source.test) for label, number in codes(split)]
        assert sorted(left) == [(c, n) for c in (0, 1) for n in range(5) if (c, n) not in ((0, 2), (1, 4))]
        for split in (source.train, source.test):
            assert [label for label, _ in codes(split)] == split.labels.tolist()
        forbid_decoding(monkeypatch)
    with pytest.raises(UserError, match="2 of 10 image files are corrupt"):  # remembered too
        load_photos(photos)


def test_the_division_does_not_depend_on_what_is_corrupt(photos):
    whole = load_photos(photos)
    cut(photos / "cat/2.jpg")
    left = load_photos(photos, "data.skip_corrupt=true")
    assert set(codes(left.test)) == set(codes(whole.test)) - {(0, 2)}
    assert left.notes["manifest_sha256"] == whole.notes["manifest_sha256"]


def test_sound_images_are_decoded_once(photos, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        integrity, "decode_error", lambda path, real=integrity.decode_error: decoded.append(path) or real(path)
    )
    assert "left_out_as_corrupt" not in load_photos(photos).notes
    assert len(decoded) == 10
    load_photos(photos)
    assert len(decoded) == 10
    cut(photos / "dog/0.jpg")
    with pytest.raises(UserError, match="dog/0.jpg is not a readable image"):
        load_photos(photos)
    assert len(decoded) == 20
    save(photos / "dog/0.jpg", 1, 9)
    assert (1, 9) in codes(load_photos(photos).train) + codes(load_photos(photos).test)


def test_many_images_are_announced(photos, capsys, monkeypatch):
    monkeypatch.setattr(integrity, "MANY", 9)
    load_photos(photos)
    assert "checking 10 image files, once per dataset" in capsys.readouterr().err


def test_domains_stay_with_the_images_that_are_left(photos, tmp_path):
    paths = [photos / name / f"{number}.jpg" for number in range(5) for name in ("cat", "dog")]
    split = Split(ImageFiles(paths), np.array([0, 1] * 5), np.repeat(np.arange(5), 2))
    memory = Split(ImageArray(np.stack([picture(1, 9)])), np.array([1]), np.array([0]))
    cut(paths[3])
    source = Source(["cat", "dog"], [["cat"], ["dog"]], split, memory)
    left = integrity.check_images(source, tmp_path / "memory", skip_corrupt=True)
    assert codes(left.train) == [(i % 2, i // 2) for i in range(10) if i != 3]
    assert left.train.labels.tolist() == [i % 2 for i in range(10) if i != 3]
    assert left.train.domains.tolist() == [i // 2 for i in range(10) if i != 3]
    assert codes(left.test) == [(1, 9)]


def test_decoding_in_threads_leaves_the_warnings_as_they_were(photos, tmp_path, monkeypatch):
    """The second image is begun while the first is decoded, and done after it."""
    first_begun, second_begun, first_done = Event(), Event(), Event()
    decode, load_pixels = integrity.decode_error, JpegImageFile.load

    def fault(path):
        assert path.endswith("0.jpg") or first_begun.wait(60)
        reason = decode(path)
        if path.endswith("0.jpg"):
            first_done.set()
        return reason

    def load_in_turn(image):
        first = image.filename.endswith("0.jpg")
        (first_begun if first else second_begun).set()
        assert (second_begun if first else first_done).wait(60)
        return load_pixels(image)

    monkeypatch.setattr(integrity.processes, "cores", lambda: 2)
    monkeypatch.setattr(integrity, "CHUNK", 1)
    monkeypatch.setattr(integrity, "decode_error", fault)
    monkeypatch.setattr(JpegImageFile, "load", load_in_turn)
    train, test = (Split(ImageFiles([photos / f"cat/{i}.jpg"]), np.zeros(1, dtype=np.int64)) for i in (0, 1))
    before = list(warnings.filters)
    integrity.check_images(Source(["cat"], [["cat"]], train, test), tmp_path / "memory", skip_corrupt=False)
    assert warnings.filters == before
