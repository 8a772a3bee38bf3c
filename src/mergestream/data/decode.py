"""Opens picture files, so that every part of the project sees the same RGB pixels."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Formats that Pillow lists but cannot decode by itself, or that are not images.
UNSUPPORTED = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
UNSIGNED, SIGNED, WHITE_IS_ZERO = 1, 2, 0  # their values
NARROW = {"L;2": 85, "L;4": 17}  # what Pillow multiplies pixels of fewer than 8 bits by, but not a transparent value


def open_picture(path: str | Path, *, draft: tuple[int, int] | None = None) -> Image.Image:
    """Return the first frame of a picture file as `to_rgb` gives it.

    Args:
        path: the file.
        draft: decode a JPEG at the smallest resolution of at least this size, which is much faster.

    Raises:
        OSError, ValueError, SyntaxError …: whatever Pillow's decoder of the format raises if the file is damaged, and
            what `to_rgb` raises.
    """
    # By the path, Pillow maps uncompressed files, and then garbles TIFFs that are stored on their side.
    with open(path, "rb") as file, _identified(file) as image:
        if image.format in UNSUPPORTED:
            raise UnidentifiedImageError(f"{image.format} is not supported")
        if image.format == "TIFF" and image.tag_v2.next == image.tag_v2.offset:  # Pillow did not get to the next one
            raise OSError("its directory is truncated")
        if draft is not None:
            image.draft("RGB", draft)
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as a viewer shows it, as RGB with 8 bits per channel.

    The orientation in its metadata is applied, transparent pixels are put on white, and integers and floats are scaled
    by the range of their type: unsigned integers by their largest value, signed ones by their largest value from 0,
    floats by 1.

    Raises:
        ValueError: if a value is negative, a float is not in [0, 1], or a transparent colour has 16 bits a channel, of
            which Pillow keeps 8.
    """
    if image.format == "PNG" and "transparency" in image.info:
        _match_transparency(image)
    image.load()
    signed = image.mode == "L" and getattr(image, "tag_v2", {}).get(SAMPLE_FORMAT, (UNSIGNED,))[0] == SIGNED
    picture = _scaled(image) if image.mode == "F" or image.mode.startswith("I") or signed else image
    with suppress(Exception):  # viewers, too, ignore metadata that cannot be read
        picture = _upright(picture, image)
    if picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


@cache
def extensions() -> frozenset[str]:
    """Return the file name extensions of the picture formats that can be read, in lower case, with a dot."""
    Image.init()
    known = Image.registered_extensions().items()
    return frozenset(extension for extension, format in known if format in Image.OPEN and format not in UNSUPPORTED)


def _identified(file: BinaryIO) -> Image.Image:
    """Return the picture in a file before it is decoded.

    Raises:
        UnidentifiedImageError: if Pillow does not know the format, or the kind of pixels in it.
    """
    try:
        return Image.open(file)
    except UnidentifiedImageError as error:
        raise UnidentifiedImageError("cannot identify image file: unknown format, or unknown kind of pixels") from error


def _match_transparency(image: Image.Image) -> None:
    """Scale the transparent value of a PNG file like its pixels, which Pillow brings to 8 bits.

    Raises:
        ValueError: if it is a colour with 16 bits a channel, of which Pillow keeps 8.
    """
    tiles = getattr(image, "tile", [])  # empty once the picture is loaded
    layout = tiles[0][3] if tiles else ""
    if layout == "RGB;16B":
        raise ValueError("its transparent colour has 16 bits a channel, which is not supported")
    if layout in NARROW:
        image.info["transparency"] *= NARROW[layout]


def _upright(picture: Image.Image, image: Image.Image) -> Image.Image:
    """Rotate `picture` by the EXIF orientation of `image`, from which it was made."""
    if picture is not image:
        picture.info["exif"] = image.getexif().tobytes()
    return ImageOps.exif_transpose(picture)


def _scaled(image: Image.Image) -> Image.Image:
    """Return a picture of one channel of wide integers or floats as 8-bit grey."""
    values, largest = _values(image)
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > largest:
        kind = "floats must be in [0, 1]" if image.mode == "F" else "integers must not be negative"
        raise ValueError(f"its {kind}; they range from {values.min():g} to {values.max():g}")
    grey = np.rint(values * (255 / largest)).astype(np.uint8)
    if "transparency" in image.info:
        grey[values == image.info["transparency"]] = 255  # it is put on white
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey  # Pillow inverts 8-bit pixels alone
    return Image.fromarray(grey)


def _values(image: Image.Image) -> tuple[np.ndarray, float]:
    """Return the values of a picture, float64 [H, W], and the largest value of their type."""
    if image.mode == "L":  # signed
        return np.asarray(image).view(np.int8).astype(np.float64), 2.0**7 - 1
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        return values, 1.0
    tags = getattr(image, "tag_v2", {})
    bits, unsigned = tags.get(BITS, (0,))[0], tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED
    if image.mode.startswith("I;"):
        return values, 2.0 ** (bits or 16) - 1
    if image.format != "TIFF":  # PNG and PPM fill 16 of the 32 bits
        return values, 2.0**16 - 1 if image.format in ("PNG", "PPM") else 2.0**31 - 1
    if unsigned:
        return np.where(values < 0, values + 2.0**bits, values), 2.0**bits - 1  # Pillow keeps them as signed ones
    return values, 2.0 ** (bits - 1) - 1
