"""Whatever picture somebody brings, as square RGB pixels: files, bytes in memory or Pillow images, damaged or not.

Embedded color profiles are not applied: pixels count as sRGB, as they do in most training sets.
"""

from __future__ import annotations

import hashlib
import io
import re
import stat
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageColor, UnidentifiedImageError

MOST_PIXELS = 100_000_000
FITS = ("crop", "pad", "stretch")
PNG = b"\x89PNG\r\n\x1a\n"
NEEDED = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"eXIf", b"IEND")  # chunks of a PNG that say how it looks

_PILLOW = threading.Lock()
# Values of the EXIF tag Orientation, and what turns such an image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Unreadable(Exception):
    """A picture that cannot be used. Its message is a short reason that continues "the file ...": "is truncated"."""


def open_image(source: Path | bytes | Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """The picture in a file, in the bytes of a file or in a Pillow image, decoded and at its whole resolution.

    The result has mode RGB and no metadata: turned upright as its EXIF data say, laid over `background` where it is
    transparent. Of an animated file it is the first frame; of a Pillow image, the frame that it stands at. Gray of
    16 bits is divided by 257 (65535 becomes 255). Mode I counts as 16 bits where a value exceeds 255, and mode F as
    0..1 where none exceeds 1; otherwise both count as 0..255.

    Threads take turns here, since Pillow's own limit is global; to decode in parallel, use processes.

    Raises:
        Unreadable: there is no such file, it is no image or a damaged one, has no or more than MOST_PIXELS pixels
            (found before they are decoded), or holds values that are not finite.
    """
    with nullcontext(source) if isinstance(source, Image.Image) else _open_stream(source) as opened:
        with _pillow():
            image = opened if isinstance(opened, Image.Image) else _decoded(opened)
        _check_size(image)
        with _pillow():
            image.load()
            turn = _UPRIGHT.get(_orientation(image))
        _check_size(image)  # an icon shows its true size only now
    mask = None
    if image.mode.startswith("I") or image.mode == "F":
        image, mask = _eight_bits(image)
    with _pillow():
        canvas = Image.new("RGB", image.size, background)
        if image.mode == "La":
            image = image.convert("LA")  # Pillow converts it to nothing else
        if image.mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa") and image.has_transparency_data:
            image = image.convert("RGBA")
            mask = image.getchannel("A")
        canvas.paste(image.convert("RGB"), mask=mask)
        return canvas if turn is None else canvas.transpose(turn)


def fit(image: Image.Image, size: int, how: str, background: tuple[int, int, int]) -> np.ndarray:
    """An RGB image as (size, size, 3) uint8; one that has this size already comes back bit for bit.

    how: "crop" cuts out the central square and scales it, "pad" scales the longer side to `size` and centers the image
    on `background`, "stretch" scales both sides to `size`.
    """
    if how == "crop":
        # Cut first: of a very long image, only what stays is scaled. Cut by numpy: Image.crop has Pillow's pixel limit.
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        if image.width != image.height:
            image = Image.fromarray(np.asarray(image)[top : top + side, left : left + side])
        return np.array(_scale(image, size, size))
    if how == "pad":
        width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
        canvas = Image.new("RGB", (size, size), background)
        canvas.paste(_scale(image, width, height), ((size - width) // 2, (size - height) // 2))
        return np.array(canvas)
    if how == "stretch":
        return np.array(_scale(image, size, size))
    raise ValueError(f"unknown fit {how!r}; known: {', '.join(FITS)}")


def content_digest(image: Image.Image) -> bytes:
    """16 bytes that depend on the size and the pixels of an RGB image, and so on no file format or later scaling."""
    digest = hashlib.blake2b(f"{image.width}x{image.height}:".encode(), digest_size=16)
    digest.update(image.tobytes())
    return digest.digest()


def parse_color(text: str) -> tuple[int, int, int]:
    """A color from "#rrggbb", "rgb(r, g, b)" or a name that PIL.ImageColor knows.

    Raises:
        ValueError: it is none of these, or is partly transparent.
    """
    color: tuple[int, ...] = ()
    with suppress(ValueError):
        color = ImageColor.getrgb(text)
    # Pillow passes on rgb(300, 0, 0) as it stands.
    if len(color) != 3 or min(color) < 0 or max(color) > 255:
        raise ValueError(f"{text!r} is no color; write it like '#ffffff' or 'white'")
    return color


def _open_stream(source: Path | bytes) -> BinaryIO:
    """The bytes of an image as an open stream; raises Unreadable where there are none."""
    if isinstance(source, bytes):
        if not source:
            raise Unreadable("has 0 bytes")
        return io.BytesIO(source)
    try:
        status = source.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Unreadable("is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("is no regular file")  # to open a pipe would wait forever
        if not status.st_size:
            raise Unreadable("has 0 bytes")
        return source.open("rb")
    except (FileNotFoundError, ValueError):  # ValueError: a name with a null character
        raise Unreadable("is missing") from None
    except OSError as error:
        raise Unreadable(f"cannot be opened ({error.strerror})") from None


@contextmanager
def _pillow() -> Iterator[None]:
    """Runs Pillow on a picture that may be damaged: whatever it raises becomes Unreadable, and it warns of nothing.

    Only calls into Pillow belong inside: on damaged files its readers raise nearly every exception there is, so
    all are caught. Meanwhile our limit stands in for Pillow's, whatever others have set that to.
    """
    with _PILLOW, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # Pillow warns above this and raises above twice this
        try:
            yield
        except Exception as error:
            raise Unreadable(_reason(error)) from None
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _decoded(stream: BinaryIO) -> Image.Image:
    """The picture in the bytes of a file. Pillow refuses a PNG for what stands beside its pixels, such as a long text
    or color profile, which counts for nothing here: such a file is read without it."""
    image: Image.Image | None
    try:
        image = Image.open(stream)
        image.load()
    except Image.DecompressionBombError:
        raise
    except Exception:
        if (pixels := _pixels_of_png(stream)) is None:
            raise
        try:
            image = Image.open(pixels)
            image.load()
        except Exception:  # the pixels are damaged as well
            image = None
        if image is None:
            raise
    return image


def _pixels_of_png(stream: BinaryIO) -> BinaryIO | None:
    """A PNG file less all that does not change how it looks; None where it is none."""
    stream.seek(0)
    if (beginning := stream.read(len(PNG))) != PNG:
        return None
    kept = io.BytesIO(beginning)
    kept.seek(len(PNG))
    while len(header := stream.read(8)) == 8:
        chunk = stream.read(int.from_bytes(header[:4]) + 4)
        if header[4:] in NEEDED:
            kept.write(header + chunk)
    kept.seek(0)
    return kept


def _reason(error: Exception) -> str:
    message = " ".join(str(error).split())
    if isinstance(error, UnidentifiedImageError):
        return "is no image that Pillow reads"
    if isinstance(error, Image.DecompressionBombError):
        pixels = re.search(r"\((\d+) pixels\)", message)
        return f"has more than {MOST_PIXELS / 1e6:g} million pixels" + (f": {pixels[1]}" if pixels else "")
    if isinstance(error, EOFError) or any(sign in message.lower() for sign in ("truncated", "not enough", "only got")):
        return "is truncated"
    if isinstance(error, MemoryError):
        return "does not fit into memory"
    return f"cannot be decoded ({message or type(error).__name__})"


def _check_size(image: Image.Image) -> None:
    size = f"has {image.width} x {image.height} pixels"
    if not (image.width and image.height):
        raise Unreadable(size)
    if image.width * image.height > MOST_PIXELS:
        raise Unreadable(f"{size}, more than {MOST_PIXELS / 1e6:g} million")


def _orientation(image: Image.Image) -> Any:
    """The EXIF tag Orientation, also from XMP; None where it is absent or the metadata are damaged."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the pixels are good, so the image is
        return None


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """An image of one deep channel as one of mode L, and the mask of what is opaque where one value is transparent."""
    values, mask = np.asarray(image), None
    if isinstance(image.info.get("transparency"), int):
        mask = Image.fromarray(np.where(values == image.info["transparency"], 0, 255).astype(np.uint8))
    if image.mode == "F":
        if not np.isfinite(values).all():
            raise Unreadable("holds values that are not finite numbers")
        values = np.rint(values * 255 if values.max() <= 1 else values)
    elif image.mode != "I" or values.max() > 255:
        values = (np.clip(values, 0, 65535).astype(np.int32) + 128) // 257  # 65535 / 255, rounded
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8)), mask


def _scale(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resize with Lanczos's filter, which keeps edges sharp and does not alias; the same pixels every time.

    Pillow adds up in fixed point and passes through width x (old height) pixels: both go wrong for very long images.
    So a side that shrinks more than 64-fold first shrinks by eighths, each pixel the mean of those that it covers.
    """
    while image.width > 64 * width or image.height > 64 * height:
        shrunk = [old // 8 if old > 64 * new else old for old, new in ((image.width, width), (image.height, height))]
        image = image.resize(shrunk, Image.Resampling.BOX)
    return image.resize((width, height), Image.Resampling.LANCZOS)
