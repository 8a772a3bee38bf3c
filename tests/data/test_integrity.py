"""Corrupt image files: an error, or left out with data.skip_corrupt=true."""

from __future__ import annotations

import warnings
from threading import Event

import numpy as np
import pytest
from archives import codes, load_photos, picture, save, truncate

from mergestream.data import integrity
from mergestream.data.images import ImageArray, ImageFiles
from mergestream.data.source import Source, Split
from mergestream.runtime.errors import UserError

pytestmark = pytest.mark.usefixtures("any_checksum")


def forbid_decoding(monkeypatch):
    monkeypatch.setattr(integrity, "decode_error", lambda path: pytest.fail(f"{path} was decoded again"))


def test_error_for_a_corrupt_image(photos):
    truncate(photos / "cat/2.jpg")
    with pytest.raises(UserError) as caught:
        load_photos(photos)
    before, after = str(caught.value).split(" is not a readable image (")
    assert before == f"{photos}/cat/2.jpg"
    assert after.split("); ")[1] == (
        "1 of 10 image files are corrupt. Replace them, or write data.skip_corrupt=true to leave them out"
    )
    assert "\n" not in str(caught.value)
    assert not (photos.parent / "results").exists()


def test_skip_corrupt_leaves_corrupt_images_out_and_caches_which(photos, capsys, monkeypatch):
    bad = [photos / "cat/2.jpg", photos / "dog/4.jpg"]
    truncate(bad[0])
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
    with pytest.raises(UserError, match="2 of 10 image files are corrupt"):  # from the cache
        load_photos(photos)


def test_split_by_name_does_not_depend_on_which_images_are_corrupt(photos):
    whole = load_photos(photos)
    truncate(photos / "cat/2.jpg")
    left = load_photos(photos, "data.skip_corrupt=true")
    assert set(codes(left.test)) == set(codes(whole.test)) - {(0, 2)}
    assert left.notes["manifest_sha256"] == whole.notes["manifest_sha256"]


def test_images_are_decoded_again_only_after_a_change(photos, monkeypatch):
    decoded = []
    monkeypatch.setattr(
        integrity, "decode_error", lambda path, real=integrity.decode_error: decoded.append(path) or real(path)
    )
    assert "left_out_as_corrupt" not in load_photos(photos).notes
    assert len(decoded) == 10
    load_photos(photos)
    assert len(decoded) == 10
    truncate(photos / "dog/0.jpg")
    with pytest.raises(UserError, match="dog/0.jpg is not a readable image"):
        load_photos(photos)
    assert len(decoded) == 20
    save(photos / "dog/0.jpg", 1, 9)
    assert (1, 9) in codes(load_photos(photos).train) + codes(load_photos(photos).test)


def test_checking_many_images_is_announced(photos, capsys, monkeypatch):
    monkeypatch.setattr(integrity, "MANY", 9)
    load_photos(photos)
    assert "checking 10 image files, once per dataset" in capsys.readouterr().err


def test_labels_and_domains_stay_with_the_remaining_images(photos, tmp_path):
    paths = [photos / name / f"{number}.jpg" for number in range(5) for name in ("cat", "dog")]
    split = Split(ImageFiles(paths), np.array([0, 1] * 5), np.repeat(np.arange(5), 2))
    in_memory = Split(ImageArray(np.stack([picture(1, 9)])), np.array([1]), np.array([0]))
    truncate(paths[3])
    source = Source(["cat", "dog"], [["cat"], ["dog"]], split, in_memory)
    left = integrity.check_images(source, tmp_path / "cache", skip_corrupt=True)
    assert codes(left.train) == [(i % 2, i // 2) for i in range(10) if i != 3]
    assert left.train.labels.tolist() == [i % 2 for i in range(10) if i != 3]
    assert left.train.domains.tolist() == [i // 2 for i in range(10) if i != 3]
    assert codes(left.test) == [(1, 9)]


def test_decoding_in_threads_restores_the_warning_filters(photos, tmp_path, monkeypatch):
    """Two threads overlap: the second image starts while the first is decoded, and finishes after it."""
    first_started, second_started, first_finished = Event(), Event(), Event()
    decode, open_picture = integrity.decode_error, integrity.open_picture

    def fault(path):
        assert path.endswith("0.jpg") or first_started.wait(60)
        reason = decode(path)
        if path.endswith("0.jpg"):
            first_finished.set()
        return reason

    def open_in_turn(path, **how):
        first = path.endswith("0.jpg")
        (first_started if first else second_started).set()
        assert (second_started if first else first_finished).wait(60)
        return open_picture(path, **how)

    monkeypatch.setattr(integrity.processes, "cores", lambda: 2)
    monkeypatch.setattr(integrity, "CHUNK", 1)
    monkeypatch.setattr(integrity, "decode_error", fault)
    monkeypatch.setattr(integrity, "open_picture", open_in_turn)
    train, test = (Split(ImageFiles([photos / f"cat/{i}.jpg"]), np.zeros(1, dtype=np.int64)) for i in (0, 1))
    before = list(warnings.filters)
    integrity.check_images(Source(["cat"], [["cat"]], train, test), tmp_path / "cache", skip_corrupt=False)
    assert warnings.filters == before
