"""Image files of every kind, made here."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from infotok.data.images import open_image

WHITE = (255, 255, 255)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def pixels(source, background=WHITE) -> list:
    return np.asarray(open_image(source, background)).tolist()


def png(width: int, height: int, bits: int, color: int, rows: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG file from its parts. color: 0 gray, 2 RGB. rows: each begins with its filter, 0. more: extra chunks."""
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    chunks = [(b"IHDR", header), *more, (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b"")]
    file = b"\x89PNG\r\n\x1a\n"
    for name, data in chunks:
        file += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return file
