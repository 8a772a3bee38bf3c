"""Picture files byte by byte, and what a viewer shows of them; written from the formats, without our decoder."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

# What the pixels must be before a viewer applies orientation 1 … 8; it ignores the values 0 and 9, which mean nothing.
STORED = {1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.swapaxes(0, 1)}
STORED |= {6: lambda a: np.rot90(a, 1), 7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: lambda a: np.rot90(a, -1)}
STORED |= dict.fromkeys((0, 9), STORED[1])

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6  # colour types of PNG


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Pixels of 0 … 255 on white; `alpha` is 0 … 1."""
    share = alpha if alpha.ndim == colour.ndim else alpha[..., None]
    return colour * share + 255 * (1 - share)


def png(
    pixels: np.ndarray,
    bits: int,
    kind: int,
    palette: np.ndarray | None = None,
    transparency: bytes = b"",
    orientation: int = 1,
) -> bytes:
    """A PNG of any legal bit depth and colour type; `pixels` are [H, W] or [H, W, channels], as stored."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if bits == 16:
        lines = [row.astype(">u2").tobytes() for row in rows]
    elif bits == 8:
        lines = [row.astype(np.uint8).tobytes() for row in rows]
    else:
        places = (rows[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        lines = [np.packbits(row.reshape(-1).astype(np.uint8)).tobytes() for row in places]
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    if orientation != 1:
        chunks.append((b"eXIf", exif(orientation).tobytes().removeprefix(b"Exif\0\0")))
    if palette is not None:
        chunks.append((b"PLTE", palette.astype(np.uint8).tobytes()))
    if transparency:
        chunks.append((b"tRNS", transparency))
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def tiff(
    values: np.ndarray,
    photometric: int = 1,
    kind: int = 1,
    extra: int | None = None,
    orientation: int = 1,
    order: str = "<",
) -> bytes:
    """An uncompressed TIFF; `kind` 1 is unsigned, 2 signed, 3 float; `extra` says what the last channel is."""
    height, width = values.shape[:2]
    channels, bits = (values.shape[2] if values.ndim == 3 else 1), values.dtype.itemsize * 8
    data = values.astype(values.dtype.newbyteorder(order)).tobytes()
    data += b"\0" * (len(data) % 2)
    several = struct.pack(f"{order}{2 * channels}H", *[bits] * channels, *[kind] * channels)
    at = 8 + len(data)  # of the lists of bits and formats
    tags: list[tuple[int, int, int, int]] = [(256, 4, 1, width), (257, 4, 1, height)]
    tags += [(258, 3, channels, bits if channels == 1 else at), (259, 3, 1, 1), (262, 3, 1, photometric)]
    tags += [(273, 4, 1, 8), (274, 3, 1, orientation), (277, 3, 1, channels), (278, 4, 1, height)]
    tags += [(279, 4, 1, len(data))] + ([(338, 3, 1, extra)] if extra is not None else [])
    tags += [(339, 3, channels, kind if channels == 1 else at + 2 * channels)]
    body = struct.pack(f"{order}H", len(tags)) + b"".join(_entry(order, *tag) for tag in tags)
    mark = b"II" if order == "<" else b"MM"
    return struct.pack(f"{order}2sHI", mark, 42, at + len(several)) + data + several + body + b"\0" * 4


def _entry(order: str, tag: int, kind: int, count: int, value: int) -> bytes:
    """An entry of a directory. One or two short numbers stand in it; longer lists are elsewhere."""
    if kind == 3 and count == 1:
        return struct.pack(f"{order}HHIHH", tag, kind, count, value, 0)
    return struct.pack(f"{order}HHII", tag, kind, count, value)


def shades(levels: np.ndarray, largest: float) -> np.ndarray:
    """Values from 0 to `largest` as 0 … 255."""
    return levels.astype(np.float64) * (255 / largest)


def colours(shown: np.ndarray) -> np.ndarray:
    """[H, W] or [H, W, 3] as [H, W, 3]."""
    return shown if shown.ndim == 3 else np.stack([shown] * 3, axis=-1)


def transparent(values: Sequence[int]) -> bytes:
    """The tRNS chunk of one transparent value or colour."""
    return struct.pack(f">{len(values)}H", *values)
