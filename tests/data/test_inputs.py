"""Pictures and folders as people have them: each comes out right, or is refused in one line."""

from __future__ import annotations

import os
import re
import shutil

import numpy as np
import pictures
import pytest
from helpers import config
from open_clip import IMAGENET_CLASSNAMES
from pictures import STORED, exif
from PIL import Image

from mergestream.compose.inputs import Inputs
from mergestream.data.decode import open_picture
from mergestream.data.integrity import decode_error
from mergestream.data.protocol import templates
from mergestream.data.source import prompts
from mergestream.data.sources.imagenet import _names
from mergestream.runtime.errors import UserError

GREY = np.arange(256, dtype=np.uint8).reshape(8, 32)  # every value once; not square, so that a turn shows
COLOUR = np.stack([GREY, GREY[::-1], 255 - GREY], axis=-1)


def grey(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels))


def with_alpha(mode: str) -> Image.Image:
    """A black picture whose shape is in its alpha channel: on white it is GREY."""
    pixels = np.zeros((*GREY.shape, 4 if mode == "RGBA" else 2), dtype=np.uint8)
    pixels[..., -1] = 255 - GREY
    return Image.fromarray(pixels, mode)


def palette() -> Image.Image:
    """A picture with a palette whose entry 5 is transparent."""
    image = grey(GREY).convert("P")
    image.info["transparency"] = 5
    return image


def white_at_five(pixels: np.ndarray) -> np.ndarray:
    return np.where(pixels == 5, 255, pixels)


def tiff(path, values: np.ndarray, photometric: int = 1, kind: int = 1) -> None:
    path.write_bytes(pictures.tiff(values, photometric, kind))


PICTURES = {
    **{
        f"orientation {n} in a {kind}": (
            lambda p, n=n: grey(STORED[n](GREY)).save(p, exif=exif(n), lossless=True), f"a.{kind}", GREY
        )
        for n in range(1, 9)
        for kind in ("png", "tiff", "webp")
        if kind == "png" or n in (3, 6)
    },
    "orientation of a 16-bit PNG": (
        lambda p: grey(STORED[8](GREY).astype(np.uint16) * 257).save(p, exif=exif(8)), "a.png", GREY
    ),
    "orientation that cannot be read": (lambda p: grey(GREY).save(p, exif=b"MM\0*\0\0\0\x08\xff"), "a.png", GREY),
    "RGBA": (lambda p: with_alpha("RGBA").save(p), "a.png", GREY),
    "RGBA in WebP": (lambda p: with_alpha("RGBA").save(p, lossless=True), "a.webp", GREY),
    "LA": (lambda p: with_alpha("LA").save(p), "a.png", GREY),
    "palette with a transparent index, PNG": (lambda p: palette().save(p), "a.png", white_at_five(GREY)),
    "palette with a transparent index, GIF": (lambda p: palette().save(p), "a.gif", white_at_five(GREY)),
    "grey with a transparent value": (lambda p: grey(GREY).save(p, transparency=5), "a.png", white_at_five(GREY)),
    "palette": (lambda p: grey(GREY).convert("P").save(p), "a.png", GREY),
    "16-bit PNG": (lambda p: grey(GREY.astype(np.uint16) * 257).save(p), "a.png", GREY),
    "16-bit TIFF": (lambda p: tiff(p, GREY.astype(np.uint16) * 257), "a.tif", GREY),
    "16-bit TIFF, white is zero": (lambda p: tiff(p, 65535 - GREY.astype(np.uint16) * 257, 0), "a.tif", GREY),
    "signed 16-bit TIFF": (lambda p: tiff(p, (GREY / 255 * 32767).astype(np.int16), kind=2), "a.tif", GREY),
    "unsigned 32-bit TIFF": (lambda p: tiff(p, GREY.astype(np.uint32) * 16843009), "a.tif", GREY),
    "signed 32-bit TIFF": (lambda p: tiff(p, (GREY / 255 * (2**31 - 1)).astype(np.int32), kind=2), "a.tif", GREY),
    "float TIFF": (lambda p: tiff(p, (GREY / 255).astype(np.float32), kind=3), "a.tif", GREY),
    "16-bit PGM": (
        lambda p: p.write_bytes(b"P5 32 8 65535\n" + (GREY.astype(">u2") * np.uint16(257)).astype(">u2").tobytes()),
        "a.pgm", GREY,
    ),
    "8-bit grey": (lambda p: grey(GREY).save(p), "a.bmp", GREY),
    "colour": (lambda p: grey(COLOUR).save(p), "a.png", COLOUR),
    "one bit": (lambda p: grey(GREY > 99).save(p), "a.png", 255 * (GREY > 99)),
    "1 × 1": (lambda p: grey(COLOUR[:1, :1]).save(p), "a.png", COLOUR[:1, :1]),
    "2000 × 3": (lambda p: grey(np.resize(COLOUR, (3, 2000, 3))).save(p), "a.png", np.resize(COLOUR, (3, 2000, 3))),
    "animation": (
        lambda p: grey(GREY).save(p, save_all=True, append_images=[grey(255 - GREY)]), "a.gif", GREY
    ),
    "animated PNG": (
        lambda p: grey(GREY).save(p, save_all=True, append_images=[grey(255 - GREY)]), "a.png", GREY
    ),
    "several pages": (
        lambda p: grey(GREY).save(p, save_all=True, append_images=[grey(255 - GREY)]), "a.tif", GREY
    ),
    "CMYK": (
        lambda p: Image.fromarray(255 - np.dstack([COLOUR, np.full_like(GREY, 255)]), "CMYK").save(p), "a.tif", COLOUR
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PICTURES)
def test_picture_inputs_look_as_in_a_viewer(case, tmp_path):
    write, name, expected = PICTURES[case]
    write(tmp_path / name)
    image = open_picture(tmp_path / name)
    assert image.mode == "RGB"
    pixels = expected if expected.ndim == 3 else np.stack([expected] * 3, axis=-1)
    np.testing.assert_array_equal(np.asarray(image), pixels)


BROKEN = {
    "a float above 1": (lambda p: tiff(p, GREY.astype(np.float32), kind=3), "a.tif", r"in \[0, 1\]; .* 0 to 255"),
    "NaN": (lambda p: tiff(p, np.full((2, 2), np.nan, np.float32), kind=3), "a.tif", r"floats must be in \[0, 1\]"),
    "a negative integer": (lambda p: tiff(p, np.full((2, 2), -1, np.int16), kind=2), "a.tif", "negative; .* -1 to -1"),
    "no picture": (lambda p: p.write_text("text"), "a.png", "cannot identify image file"),
    "an empty file": (lambda p: p.write_bytes(b""), "a.jpg", "cannot identify image file"),
    "a broken link": (lambda p: p.symlink_to("nowhere"), "a.png", "No such file"),
    "a folder": (lambda p: p.mkdir(), "a.png", "Is a directory"),
    "a cut JPEG": (lambda p: (grey(np.resize(COLOUR, (64, 64, 3))).save(p), os.truncate(p, 900)), "a.jpg", "truncated"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_picture_inputs_that_cannot_be_shown_say_why(case, tmp_path):
    write, name, reason = BROKEN[case]
    write(tmp_path / name)
    assert re.search(reason, decode_error(str(tmp_path / name)) or "")


def classes(root, *names: str, images: int = 4, suffix: str = ".png") -> None:
    """Coloured squares, no two alike, in a folder for each class."""
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(images):
            colour = (40 * label, 20 * number, len(root.name))
            Image.new("RGB", (8, 8), colour).save(root / name / f"{number}{suffix}")


def load(root, *overrides: str):
    words = ("dataset=folder", f"dataset.path={root}", "model=tiny", f"root={root.parent}/results")
    return Inputs(config("train", *words, *overrides)).source()


def counts(source) -> dict[str, tuple[int, int]]:
    """Training and test images of each class."""
    numbers = [np.bincount(s.labels, minlength=source.num_classes).tolist() for s in (source.train, source.test)]
    return dict(zip(source.class_names, zip(*numbers, strict=True), strict=True))


SPLIT = {"a": (4, 4), "b": (4, 4)}
WHOLE = {"a": (3, 1), "b": (3, 1)}


def splits(*names: str):
    return lambda root: [classes(root / name, "a", "b") for name in names]


def beside(*files: str):
    """Two classes, and other files in the folder of the first."""

    def write(root) -> None:
        classes(root, "a", "b")
        for name in files:
            (root / "a" / name).parent.mkdir(parents=True, exist_ok=True)
            (root / "a" / name).write_bytes(b"\0\5\x16\7 no picture")

    return write


def copied(folder: str):
    """Two classes, and copies of the first in a folder that is none of the user's."""

    def write(root) -> None:
        classes(root, "a", "b")
        shutil.copytree(root / "a", root / folder)

    return write


def loop(root) -> None:
    classes(root, "a", "b")
    (root / "a/again").symlink_to("..")


def linked(root) -> None:
    classes(root / "store", "one")
    classes(root, "b")
    (root / "a").symlink_to("store/one")
    shutil.move(root / "store", root.parent / "store")
    (root / "a").unlink()
    (root / "a").symlink_to("../store/one")


FOLDERS = {
    "classes": (splits(""), WHOLE),
    "train and test": (splits("train", "test"), SPLIT),
    "training and testing": (splits("training", "testing"), SPLIT),
    "Training and Testing": (splits("Training", "Testing"), SPLIT),
    "TRAIN and TEST": (splits("TRAIN", "TEST"), SPLIT),
    "train and val": (splits("train", "val"), SPLIT),
    "train and valid": (splits("train", "valid"), SPLIT),
    "train and validation": (splits("train", "validation"), SPLIT),
    "train and Dev": (splits("train", "Dev"), SPLIT),
    "train, val and test": (splits("train", "val", "test"), SPLIT),
    "a folder of macOS beside the splits": (splits("train", "test", "__MACOSX/train"), SPLIT),
    "a hidden folder beside the splits": (splits("train", "test", ".cache"), SPLIT),
    "AppleDouble files": (beside("._000.png", "._x.jpg"), WHOLE),
    "checkpoints of notebooks as a class": (copied(".ipynb_checkpoints"), WHOLE),
    "checkpoints of notebooks within a class": (copied("a/.ipynb_checkpoints"), WHOLE),
    "__MACOSX as a class": (copied("__MACOSX"), WHOLE),
    "__MACOSX within a class": (copied("a/__MACOSX"), WHOLE),
    "notes beside the pictures": (beside("notes.txt", "labels.csv"), WHOLE),
    "a link that leads back": (loop, WHOLE),
    "a class behind a link": (linked, WHOLE),
    "pictures in folders below a class": (lambda r: (classes(r / "a", "x", "y", images=2), classes(r, "b")), WHOLE),
    **{
        f"{suffix} files": (lambda r, suffix=suffix: classes(r, "a", "b", suffix=suffix), WHOLE)
        for suffix in (".gif", ".avif", ".jfif", ".webp", ".BMP", ".tiff", ".PnG")
    },
}


@pytest.mark.parametrize("case", FOLDERS)
def test_folder_inputs_are_read_right(case, tmp_path):
    write, expected = FOLDERS[case]
    (tmp_path / "photos").mkdir()
    write(tmp_path / "photos")
    assert counts(load(tmp_path / "photos")) == expected


def half(*names: str):
    """Splits of two classes, and other folders with pictures."""
    return splits(*names)


REFUSED = {
    "train without test": (half("train"), r"one train and one test \(or validation\) folder; .* has train\. "),
    "test without train": (half("test"), "has test"),
    "a class beside the splits": (lambda r: (half("train", "test")(r), classes(r, "a")), "has train, test, a"),
    "two training splits": (half("train", "Training", "test"), "has Training, train"),
    "two test splits": (half("train", "test", "testing"), "has test, testing"),
    "a class named train": (lambda r: classes(r, "train", "car", "ship"), "has train, car"),
    "names that are spoken alike": (lambda r: classes(r, "red_fox", "red fox"), "'red fox' and 'red_fox' are the same"),
    "names that differ in case": (lambda r: classes(r, "Fox", "fox"), "'Fox' and 'fox' are the same to CLIP"),
    "a test class without training": (
        lambda r: (classes(r / "train", "a", "b"), classes(r / "test", "a", "c")), "test/c must also be a class"
    ),
    "a class without pictures": (lambda r: (classes(r, "a", "b"), (r / "c").mkdir()), "c has none"),
    "pictures without classes": (lambda r: classes(r.parent, r.name), "a folder of images for each class"),
    "one class": (lambda r: classes(r, "a"), "has only a"),
    "a class name that is no text": (
        lambda r: (classes(r, "a"), shutil.copytree(r / "a", r / os.fsdecode(b"\xff"))), "must have a readable name"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_folder_inputs_that_are_not_understood_are_refused(case, tmp_path):
    write, message = REFUSED[case]
    (tmp_path / "photos").mkdir()
    write(tmp_path / "photos")
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / "photos")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("texts", ["['{} {}']", "['{name}']", "['{0}']", "['{']", "['{!r}']", "[1]", "['none']", "[]"])
def test_template_inputs_need_exactly_one_place(texts, tmp_path):
    classes(tmp_path / "photos", "a", "b")
    with pytest.raises(UserError, match="dataset.templates must each have one {} for the class name"):
        load(tmp_path / "photos", f"dataset.templates={texts}")


def test_prompt_inputs_that_two_classes_share_are_refused():
    with pytest.raises(UserError, match="'Crane' and 'crane' are the same to CLIP"):
        prompts(["Crane", "fox", "crane"], ["a {}.", "the {}."])
    assert prompts(["crane bird", "crane"], ["a {}."]) == [["a crane bird."], ["a crane."]]


def test_prompt_inputs_of_imagenet_are_the_names_of_its_list(capsys):
    birds_and_machines = ["n02012849", "n03126707", "n03710637", "n03710721"]
    expected = ["crane bird", "construction crane", "tights", "one-piece bathing suit"]
    assert _names(birds_and_machines) == expected
    made = prompts(IMAGENET_CLASSNAMES, templates("imagenet"), published=True)
    assert len({tuple(texts) for texts in made}) == 998
    assert capsys.readouterr().err.splitlines() == [
        f"classes {one} and {other} are both named '{name}' in the published list, so only the first of them can be "
        "predicted"
        for one, other, name in ((657, 744, "missile"), (836, 837, "sunglasses"))
    ]


def test_skipped_files_are_counted_by_extension_once(tmp_path, capsys):
    beside("notes.txt", "more.txt", "README")(tmp_path / "photos")
    load(tmp_path / "photos")
    expected = "dataset.path: skipped files that are not images: 2 of .txt, 1 of no extension\n"
    assert capsys.readouterr().err == expected


def test_file_names_that_are_no_utf_8_are_read_and_named(tmp_path, capsys):
    classes(tmp_path / "photos", "a", "b")
    odd = os.path.join(os.fsencode(tmp_path / "photos/a"), b"\xff.png")
    os.rename(tmp_path / "photos/a/0.png", odd)
    assert counts(load(tmp_path / "photos")) == WHOLE
    with open(odd, "wb") as file:
        file.write(b"no picture")
    with pytest.raises(UserError, match="is not a readable image"):
        load(tmp_path / "photos")
    assert counts(load(tmp_path / "photos", "data.skip_corrupt=true"))["b"] == (3, 1)


def test_broken_links_are_corrupt_files(tmp_path):
    classes(tmp_path / "photos", "a", "b")
    (tmp_path / "photos/a/9.png").symlink_to("nowhere")
    with pytest.raises(UserError, match=r"a/9.png is not a readable image \(.*No such file.*1 of 9 image files"):
        load(tmp_path / "photos")
    assert sum(counts(load(tmp_path / "photos", "data.skip_corrupt=true"))["a"]) == 4


def test_a_class_of_corrupt_files_alone_is_dropped_and_named(tmp_path, capsys):
    classes(tmp_path / "photos/train", "a", "b", "c")
    classes(tmp_path / "photos/test", "a", "b", "c")
    for path in (tmp_path / "photos/train/b").iterdir():
        path.write_text("no picture")
    source = load(tmp_path / "photos", "data.skip_corrupt=true")
    assert counts(source) == {"a": (4, 4), "c": (4, 4)}
    assert [texts[0] for texts in source.prompts] == ["a photo of a a.", "a photo of a c."]
    assert "left out b: no training image can be read" in capsys.readouterr().err


def test_test_images_that_are_also_training_images_are_counted(tmp_path, capsys):
    splits("train", "test")(tmp_path / "photos")
    for number in (1, 2):
        shutil.copy(tmp_path / f"photos/train/a/{number}.png", tmp_path / f"photos/test/b/copy-{number}.png")
    for _ in range(2):  # the second from the cache
        load(tmp_path / "photos")
        assert "2 of 10 test image files are also in the training set, byte for byte" in capsys.readouterr().err
