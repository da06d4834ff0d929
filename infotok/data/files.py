"""Files of somebody's data: names, links that lead out of the folder, images inside of other files, JSON."""

from __future__ import annotations

import base64
import binascii
import gzip
import io
import json
import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import numpy as np

from infotok.data.images import Unreadable
from infotok.errors import InfotokError

if TYPE_CHECKING:
    from PIL.Image import Image

WORDS = ("image", "images")  # of an entry, that hold its image
SUFFIXES = {".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff"}  # what names of images end in
CHANNELS = (1, 3, 4)
LINES = "write one object a line, or a JSON array of them (COCO's and VQAv2's own files: data.source: coco)"
_SHORTEST = 64  # characters of base64 that may be an image
_BASE64 = ("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR", "Qk", "SUkq", "TU0AK")  # PNG, JPEG, GIF, WebP, BMP, TIFF begin so


def inside(root: Path, name: Any, outside: tuple[Path, ...] = ()) -> Path:
    """The file of this name under a folder. Backslashes may part its folders; of letters that Unicode writes in two
    ways the one that is on the disk counts.

    Args:
        outside: folders outside of `root` into which links, and names, may lead.

    Raises:
        Unreadable: it is no name of a file, or one that leads out of the folder, by `..` or by a link.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name or not _is_a_name(name):
        raise Unreadable("has no file name")
    path = _on_disk(root, name)
    real, allowed = path.resolve(), [root, *outside]
    if any(real.is_relative_to(folder.resolve()) for folder in allowed):
        return path
    if Path(os.path.normpath(path)).is_relative_to(os.path.normpath(root)):
        raise Unreadable(f"is a link out of the folder, which data.outside must allow: {name} leads to {real}")
    raise Unreadable(f"leaves the folder: {name}")


def _is_a_name(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


def _on_disk(root: Path, name: str) -> Path:
    for slashed in dict.fromkeys((name, name.replace("\\", "/"))):
        for form in dict.fromkeys((slashed, *(unicodedata.normalize(kind, slashed) for kind in ("NFC", "NFD")))):
            if os.path.lexists(root / form):
                return root / form
    return root / name.replace("\\", "/")


def shown(text: str) -> str:
    """A text that can be written, of one that perhaps cannot: a file's name may be no Unicode."""
    return text.encode(errors="backslashreplace").decode()


def is_unicode(text: str) -> bool:
    """Whether a text can be written: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_of(entry: dict[str, Any]) -> Any:
    """The image of an entry, its only one where it has a list; None where it names none.

    Raises:
        Unreadable: it names several.
    """
    given = [entry[word] for word in WORDS if entry.get(word) is not None]
    value = given[0] if given else None
    if isinstance(value, (list, tuple)) and not _is_numbers(value):
        if len(value) > 1:
            raise Unreadable(f"list holds {len(value)} images; a line may have one")
        value = value[0] if value else None
    return value


def picture(value: Any, root: Path | None, outside: tuple[Path, ...] = ()) -> Path | bytes | Image:
    """What `open_image` takes, of a value that names or holds an image: a file's name under `root`, its bytes, also in
    base64 or as `data:image/png;base64,...`, {"bytes", "path"}, pixels as numbers (rows, columns, channels), or an
    image of Pillow. root: None where names are those of `datasets`, which puts files where it likes.

    Raises:
        Unreadable: it is none of these, or its name leads out of the folder.
    """
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if _is_numbers(value):
        try:
            return _of_numbers(np.asarray(value))
        except ValueError:  # rows of unlike length
            raise Unreadable("is no image: numbers in rows of unlike length") from None
    if isinstance(value, str):
        if (data := _decoded(value)) is not None:
            return data
        if root is None and value.strip():
            return Path(value)
    if value is None or isinstance(value, str):
        return inside(root or Path(), value, outside)
    if not hasattr(value, "getexif"):
        raise Unreadable(f"is no image but {type(value).__name__}")
    return value


def _decoded(text: str) -> bytes | None:
    """The bytes that base64 holds; None where a text is a file's name. What images begin with tells them apart."""
    if text.startswith("data:"):
        text = text.partition(",")[2]
    elif len(text) < _SHORTEST or not text.startswith(_BASE64):
        return None
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        return None


def _is_numbers(value: Any) -> bool:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return isinstance(value, (int, float, np.ndarray, np.number)) and not isinstance(value, bool)


def _of_numbers(pixels: np.ndarray) -> Image:
    from PIL import Image

    if pixels.ndim == 3 and pixels.shape[-1] not in CHANNELS and pixels.shape[0] in CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    flat = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in CHANNELS)
    if not flat or pixels.dtype.kind not in "uif":
        raise Unreadable(f"is no image: numbers of shape {pixels.shape}")
    if pixels.size and not np.isfinite(pixels).all():
        raise Unreadable("holds values that are not finite numbers")
    if pixels.dtype.kind == "f" and pixels.size and pixels.max() <= 1:
        pixels = pixels * 255
    if pixels.size and (pixels.min() < 0 or pixels.max() > 255):
        raise Unreadable(f"holds values from {pixels.min():g} to {pixels.max():g}, not from 0 to 255 or 1")
    pixels = np.rint(pixels).astype(np.uint8)
    return Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)


def open_text(path: Path) -> TextIO:
    """A file of UTF-8, with or without a byte-order mark, plain or compressed by gzip, its lines ended in any way;
    bytes that are not UTF-8 become surrogates.

    Raises:
        InfotokError: it is UTF-16.
    """
    with open(path, "rb") as file:
        begin = file.read(2)
    stream = gzip.open(path, "rb") if begin == b"\x1f\x8b" else open(path, "rb")  # noqa: SIM115
    if begin in (b"\xff\xfe", b"\xfe\xff"):
        stream.close()
        raise InfotokError(f"{path}: is UTF-16; write it as UTF-8")
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=None)


def json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """(line, what it holds), of JSON lines, a ValueError where one cannot be read; of one JSON array the entry's
    number in place of the line.

    Raises:
        InfotokError: the file is one JSON object, is damaged, or is an array that cannot be read.
    """
    try:
        with open_text(path) as file:
            first = next((line.lstrip() for line in file if line.strip()), "")
        if first.startswith("["):
            yield from enumerate(read_json(path), 1)
            return
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    entry = _parsed(line)
                    if number == 1 and _is_whole(path, line, entry):
                        raise InfotokError(f"{path}: is one JSON object, not one a line; {LINES}")
                    yield number, entry
    except (EOFError, gzip.BadGzipFile, OSError) as error:
        raise InfotokError(f"{path}: cannot be read ({error}); copy it again") from None


def _parsed(line: str) -> Any:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError) as error:
        entry = ValueError(f"is not JSON ({getattr(error, 'msg', 'nested too deep')})")
    # Of bytes that are not UTF-8 the reader made surrogates, which JSON itself can only name.
    return entry if is_unicode(line) else ValueError("is not UTF-8")


def _is_whole(path: Path, line: str, first: Any) -> bool:
    """Whether a file is one object, on one line as COCO's or over several."""
    if isinstance(first, dict):
        return "image" not in first and any(isinstance(first.get(name), list) for name in ("annotations", "data"))
    try:
        return line.lstrip().startswith("{") and isinstance(read_json(path), dict)
    except InfotokError:
        return False


def read_json(path: Path) -> Any:
    """What a whole file of JSON holds.

    Raises:
        InfotokError: it is missing, damaged, not UTF-8 or not JSON.
    """
    try:
        with open_text(path) as file:
            text = file.read()
        if not is_unicode(text):
            raise InfotokError(f"{path}: is not UTF-8; write it as UTF-8")
        return json.loads(text)
    except FileNotFoundError:
        raise InfotokError(f"{path}: is missing") from None
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        problem = getattr(error, "msg", "nested too deep")
        raise InfotokError(f"{path}:{line}: is not JSON ({problem}); write it again") from None
    except (EOFError, OSError) as error:
        raise InfotokError(f"{path}: cannot be read ({error}); copy it again") from None
