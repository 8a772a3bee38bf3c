"""Opens picture files, so that every part of the project sees the same RGB pixels."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Formats that Pillow lists but cannot decode by itself, or that are no pictures.
UNSUPPORTED = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")
BITS, PHOTOMETRIC, SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
UNSIGNED, WHITE_IS_ZERO = 1, 0  # their values


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
    with open(path, "rb") as file, Image.open(file) as image:
        if image.format in UNSUPPORTED:
            raise UnidentifiedImageError(f"{image.format} is not supported")
        if draft is not None:
            image.draft("RGB", draft)
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return a picture as a viewer shows it, as RGB with 8 bits per channel.

    The orientation in its metadata is applied, transparent pixels are put on white, and integers and floats are scaled
    by the range of their type: unsigned integers by their largest value, signed ones by their largest value from 0,
    floats by 1.

    Raises:
        ValueError: if a value is negative, or a float is not in [0, 1].
    """
    image.load()
    picture = _scaled(image) if image.mode == "F" or image.mode.startswith("I") else image
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


def _upright(picture: Image.Image, image: Image.Image) -> Image.Image:
    """Return `picture`, turned as the metadata of `image`, which it was made from, say."""
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
    if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
        grey = 255 - grey  # Pillow inverts 8-bit pixels alone
    return Image.fromarray(grey)


def _values(image: Image.Image) -> tuple[np.ndarray, float]:
    """Return the values of a picture, float64 [H, W], and the largest value of their type."""
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
