"""Pictures of every mode, container and metadata: each shows what a viewer shows, or ends in one line."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pictures import (
    GREY,
    GREY_ALPHA,
    PALETTE,
    RGB,
    RGBA,
    STORED,
    colours,
    exif,
    on_white,
    png,
    shades,
    tiff,
    transparent,
)
from PIL import Image

from mergestream.data.decode import open_picture
from mergestream.data.integrity import decode_error

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "25"))

Draw = np.random.Generator
Shape = tuple[int, int]
# (content, extension, what a viewer shows as 0 … 255, how far a pixel may be off)
Made = tuple[bytes, str, np.ndarray, float]
Kind = Callable[[Draw, Shape, int], Made]

EXACT, ROUNDED, LOSSY = 0.0, 1.01, 16.0


def png_grey(bits: int, keyed: bool) -> Kind:
    def make(draw: Draw, shape: Shape, orientation: int) -> Made:
        levels = draw.integers(0, 2**bits, shape)
        shown, key = shades(levels, 2**bits - 1), int(levels[0, 0])
        if keyed:
            shown = np.where(levels == key, 255.0, shown)
        trns = transparent([key]) if keyed else b""
        content = png(STORED[orientation](levels), bits, GREY, transparency=trns, orientation=orientation)
        return content, ".png", shown, EXACT if bits <= 8 else ROUNDED

    return make


def png_colour(bits: int, keyed: bool) -> Kind:
    def make(draw: Draw, shape: Shape, orientation: int) -> Made:
        levels = draw.integers(0, 2**bits, (*shape, 3))
        shown, key = shades(levels, 2**bits - 1), levels[0, 0]
        if keyed:
            shown = np.where((levels == key).all(-1, keepdims=True), 255.0, shown)
        trns = transparent(key.tolist()) if keyed else b""
        content = png(STORED[orientation](levels), bits, RGB, transparency=trns, orientation=orientation)
        return content, ".png", shown, EXACT if bits == 8 else ROUNDED

    return make


def png_palette(bits: int, keyed: bool) -> Kind:
    def make(draw: Draw, shape: Shape, orientation: int) -> Made:
        indices, entries = draw.integers(0, 2**bits, shape), draw.integers(0, 256, (2**bits, 3))
        alphas = draw.integers(0, 256, draw.integers(1, 2**bits + 1)) if keyed else np.empty(0, int)
        whole = np.concatenate([alphas, np.full(2**bits - len(alphas), 255)])
        trns = alphas.astype(np.uint8).tobytes()
        content = png(STORED[orientation](indices), bits, PALETTE, entries, trns, orientation)
        return content, ".png", on_white(entries[indices], whole[indices] / 255), ROUNDED

    return make


def png_alpha(bits: int, kind: int) -> Kind:
    def make(draw: Draw, shape: Shape, orientation: int) -> Made:
        levels = draw.integers(0, 2**bits, (*shape, 2 if kind == GREY_ALPHA else 4))
        shown, alpha = shades(levels[..., :-1], 2**bits - 1), levels[..., -1:] / (2**bits - 1)
        content = png(STORED[orientation](levels), bits, kind, orientation=orientation)
        shown = on_white(shown, alpha)
        return content, ".png", shown[..., 0] if kind == GREY_ALPHA else shown, 2.01

    return make


def tiff_grey(order: str, dtype: str, white_is_zero: bool) -> Kind:
    def make(draw: Draw, shape: Shape, orientation: int) -> Made:
        kind = np.dtype(dtype)
        if kind.kind == "f":
            values, largest = draw.random(shape).astype(kind), 1.0
        else:
            largest = float(np.iinfo(kind).max)
            values = draw.integers(0, int(largest), shape, endpoint=True).astype(kind)
        shown = shades(values, largest)
        code = {"u": 1, "i": 2, "f": 3}[kind.kind]
        content = tiff(STORED[orientation](values), 0 if white_is_zero else 1, code, None, orientation, order)
        return content, ".tif", 255 - shown if white_is_zero else shown, ROUNDED

    return make


def tiff_colour(dtype: str, extra: int | None) -> Kind:
    """`extra`: None for RGB, 0 for a channel that means nothing, 1 for premultiplied alpha, 2 for alpha."""

    def make(draw: Draw, shape: Shape, orientation: int) -> Made:
        largest = np.iinfo(dtype).max
        values = draw.integers(0, largest, (*shape, 3 if extra is None else 4), endpoint=True)
        alpha = values[..., 3:] / largest
        if extra == 1:
            values[..., :3] = np.floor(values[..., :3] * alpha)
        shown = shades(values[..., :3], largest)
        if extra == 1:
            shown = shown + 255 * (1 - alpha)
        elif extra == 2:
            shown = shown * alpha + 255 * (1 - alpha)
        order = draw.choice(["<", ">"])
        content = tiff(STORED[orientation](values.astype(dtype)), 2, 1, extra, orientation, order)
        return content, ".tiff", shown, 3.01 if extra else ROUNDED

    return make


def pnm(magic: bytes) -> Kind:
    def make(draw: Draw, shape: Shape, orientation: int) -> Made:
        height, width = shape
        size = b"%d %d\n" % (width, height)
        if magic == b"P4":
            bits = draw.integers(0, 2, shape)
            return (
                b"P4\n" + size + np.packbits(bits.astype(np.uint8), axis=1).tobytes(),
                ".pbm",
                255.0 * (1 - bits),
                EXACT,
            )
        if magic == b"Pf":
            values = draw.random(shape).astype("<f4")
            return b"Pf\n" + size + b"-1.0\n" + values[::-1].tobytes(), ".pfm", shades(values, 1.0), ROUNDED
        largest = int(draw.choice([1, 15, 100, 255, 256, 1023, 65535]))
        levels = draw.integers(0, largest, (*shape, 3) if magic == b"P6" else shape, endpoint=True)
        content = magic + b"\n" + size + b"%d\n" % largest + levels.astype(">u2" if largest > 255 else "u1").tobytes()
        return content, ".ppm" if magic == b"P6" else ".pgm", shades(levels, largest), ROUNDED

    return make


def saved(mode: str, extension: str, error: float = EXACT, tagged: bool = False, **options: object) -> Kind:
    """Pictures that Pillow writes from 8-bit pixels; `tagged` containers hold an orientation."""

    def make(draw: Draw, shape: Shape, orientation: int) -> Made:
        channels = {"L": (), "1": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
        pixels = draw.integers(0, 256, (*shape, *channels), dtype=np.uint8)
        if error == LOSSY:  # one colour for each half: what is lost is little, and a turn shows
            pixels[...] = pixels[0, 0]
            pixels[: (shape[0] + 1) // 2] = 255 - pixels[0, 0]
        pixels = pixels > 127 if mode == "1" else pixels
        orientation = min(max(orientation, 1), 8) if extension == ".tif" else orientation  # libtiff writes no others
        stored = np.ascontiguousarray(STORED[orientation](pixels) if tagged else pixels)
        more = {"exif": exif(orientation)} if tagged and orientation != 1 else {}
        file = io.BytesIO()
        Image.fromarray(stored, "CMYK" if mode == "CMYK" else None).save(file, EXTENSIONS[extension], **more, **options)
        return file.getvalue(), extension, _shown(pixels, mode), error

    return make


EXTENSIONS = {".jpg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".jp2": "JPEG2000"}
EXTENSIONS |= {".tga": "TGA", ".sgi": "SGI", ".pcx": "PCX", ".dds": "DDS", ".avif": "AVIF"}


def _shown(pixels: np.ndarray, mode: str) -> np.ndarray:
    if mode in ("LA", "RGBA"):
        shown = on_white(pixels[..., :-1].astype(float), pixels[..., -1:] / 255)
        return shown[..., 0] if mode == "LA" else shown
    if mode == "CMYK":
        ink = pixels / 255
        return 255 * (1 - ink[..., :3]) * (1 - ink[..., 3:])
    return pixels * 255.0 if mode == "1" else pixels.astype(float)


def gif(keyed: bool) -> Kind:
    def make(draw: Draw, shape: Shape, orientation: int) -> Made:
        indices, entries = draw.integers(0, 256, shape, dtype=np.uint8), draw.integers(0, 256, (256, 3))
        image = Image.fromarray(indices, "P")
        image.putpalette(entries.astype(np.uint8).tobytes())
        key, file = int(indices[0, 0]), io.BytesIO()
        image.save(file, "GIF", optimize=False, **({"transparency": key} if keyed else {}))
        shown = entries[indices].astype(float)
        shown[(indices == key) & keyed] = 255
        return file.getvalue(), ".gif", shown, EXACT

    return make


TIFF_TYPES = ("u1", "u2", "u4", "i1", "i2", "i4", "f4", "f8")
KINDS: dict[str, Kind] = {
    **{f"{b}-bit grey PNG{' with a key' * k}": png_grey(b, bool(k)) for b in (1, 2, 4, 8, 16) for k in (0, 1)},
    **{f"{b}-bit colour PNG{' with a key' * k}": png_colour(b, bool(k)) for b in (8, 16) for k in (0, 1)},
    **{f"{b}-bit palette PNG{' with alphas' * k}": png_palette(b, bool(k)) for b in (1, 2, 4, 8) for k in (0, 1)},
    **{f"{b}-bit PNG of kind {k}": png_alpha(b, k) for b in (8, 16) for k in (GREY_ALPHA, RGBA)},
    **{f"{o}{d} TIFF{' inverted' * w}": tiff_grey(o, d, bool(w)) for o in "<>" for d in TIFF_TYPES for w in (0, 1)},
    **{f"{d} colour TIFF, extra {e}": tiff_colour(d, e) for d in ("u1", "u2") for e in (None, 0, 1, 2)},
    **{f"{magic.decode()} of Netpbm": pnm(magic) for magic in (b"P4", b"P5", b"P6", b"Pf")},
    **{f"{mode} JPEG": saved(mode, ".jpg", LOSSY, True, quality=100, subsampling=0) for mode in ("L", "RGB", "CMYK")},
    **{f"{mode} WebP": saved(mode, ".webp", ROUNDED, True, lossless=True, exact=True) for mode in ("RGB", "RGBA")},
    **{f"{mode} AVIF": saved(mode, ".avif", LOSSY, True, quality=100, subsampling="4:4:4") for mode in ("RGB", "RGBA")},
    **{
        f"{mode} TIFF, {how}": saved(mode, ".tif", ROUNDED, True, compression=how)
        for mode in ("1", "L", "RGB", "RGBA", "CMYK", "LA")
        for how in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
    },
    **{f"{mode} JPEG 2000": saved(mode, ".jp2", ROUNDED) for mode in ("L", "LA", "RGB", "RGBA")},
    **{f"{mode} BMP": saved(mode, ".bmp") for mode in ("1", "L", "RGB")},
    **{f"{mode} TGA": saved(mode, ".tga", ROUNDED) for mode in ("1", "L", "LA", "RGB", "RGBA")},
    **{f"{mode} SGI": saved(mode, ".sgi", ROUNDED) for mode in ("L", "RGB", "RGBA")},
    **{f"{mode} PCX": saved(mode, ".pcx") for mode in ("1", "L", "RGB")},
    **{f"{mode} DDS": saved(mode, ".dds", ROUNDED) for mode in ("L", "LA", "RGB", "RGBA")},
    "GIF": gif(False),
    "GIF with a transparent index": gif(True),
}  # fmt: skip
# Pillow knows none of these, or keeps too little of it; a later one may.
MAY_BE_REFUSED = {"16-bit colour PNG with a key", ">u4 TIFF", ">u2 TIFF inverted", *(f"{o}f8 TIFF" for o in "<>")}
MAY_BE_REFUSED |= {f"{o}{d} TIFF inverted" for o in "<>" for d in ("u4", "i1", "i2", "i4", "f8")}
SHAPES = st.one_of(
    st.sampled_from([(1, 1), (1, 300), (300, 1), (300, 3), (3, 300), (2, 3)]),
    st.tuples(st.integers(1, 17), st.integers(1, 17)),
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, Made, int]:
    """A kind, a picture of it, and how many bytes are missing at its end."""
    name, shape = draw(st.sampled_from(sorted(KINDS))), draw(SHAPES)
    orientation = draw(st.one_of(st.just(1), st.integers(0, 9)))
    made = KINDS[name](np.random.default_rng(draw(st.integers(0, 10**6))), shape, orientation)
    cut = draw(st.one_of(st.just(0), st.just(0), st.integers(1, len(made[0]))))
    return name, made, cut


def opened(path: str) -> np.ndarray | None:
    """The pixels, or None where the file is refused, in one line and for the check before a training as well."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of unusual metadata
        reason = decode_error(path)
        try:
            image = open_picture(path)
        except Exception:
            assert reason, path
            assert "\n" not in reason
            return None
    assert reason is None
    assert image.mode == "RGB"
    return np.asarray(image).astype(float)


def check(kind: str, made: Made, cut: int, path: str) -> None:
    content, _, shown, error = made
    with open(path, "wb") as file:
        file.write(content[: len(content) - cut])
    pixels = opened(path)
    if pixels is None:
        assert cut or kind in MAY_BE_REFUSED, "a whole file is refused"
        return
    assert pixels.shape == (*shown.shape[:2], 3)
    assert np.abs(pixels - colours(shown)).max() <= error


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_of_each_kind_look_as_in_a_viewer(kind, tmp_path):
    for orientation in (1, 6):
        made = KINDS[kind](np.random.default_rng(0), (5, 3), orientation)
        check(kind, made, 0, str(tmp_path / f"a{made[1]}"))


def test_inputs_of_any_kind_look_as_in_a_viewer_or_are_refused(tmp_path):
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if "FUZZ_EXAMPLES" in os.environ else [])],
        derandomize="FUZZ_EXAMPLES" not in os.environ,
        suppress_health_check=list(HealthCheck),
    )
    @given(files())
    def run(example):
        kind, made, cut = example
        check(kind, made, cut, str(tmp_path / f"a{made[1]}"))

    run()
