"""Broken pictures become Unreadable, nothing else, and cost neither memory nor files."""

from __future__ import annotations

import os
import random
import struct
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from pictures import WHITE, encode, noise, pixels, png
from PIL import Image

from infotok.data import images
from infotok.data.images import FITS, Unreadable, fit, open_image


def test_missing_empty_and_foreign_files_are_named(tmp_path, monkeypatch):
    def reason(source: Path | bytes) -> str:
        with pytest.raises(Unreadable) as caught:
            open_image(source, WHITE)
        return str(caught.value)

    good, empty, text, pipe = (tmp_path / name for name in ("good.png", "empty.png", "text.jpg", "pipe.png"))
    good.write_bytes(encode(Image.new("RGB", (1, 1)), "PNG"))
    empty.touch()
    text.write_text("a letter home " * 100)
    os.mkfifo(pipe)
    assert reason(tmp_path / "none.png") == "is missing"
    assert reason(tmp_path / "nu\0ll.png") == "is missing"
    assert reason(tmp_path) == "is a directory"
    assert reason(good / "inside.png") == "cannot be opened (Not a directory)"
    assert reason(pipe) == "is no regular file"
    assert reason(empty) == reason(b"") == "has 0 bytes"
    assert reason(text) == reason(b"\0" * 100) == reason(b"x") == "is no image that Pillow reads"
    assert reason(encode(Image.fromarray(noise(9, 9)), "PNG")[:200]) == "is truncated"

    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    open_image(good, WHITE)
    monkeypatch.setattr(Path, "open", forbidden)
    assert reason(good) == "cannot be opened (Permission denied)"


def test_an_image_without_pixels_is_unreadable():
    for size in ((0, 5), (5, 0)):
        with pytest.raises(Unreadable, match=f"has {size[0]} x {size[1]} pixels"):
            open_image(Image.new("RGB", size), WHITE)
    with pytest.raises(Unreadable):
        open_image(encode(Image.new("L", (1, 1)), "PPM").replace(b"1 1", b"0 1"), WHITE)


def test_a_bomb_is_named_before_it_is_decoded(monkeypatch):
    side = 26843
    bomb = png(side, side, 1, 0, bytes(side * (1 + (side + 7) // 8)))
    assert len(bomb) < 500_000

    def decoded(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decoded)
    warnings.simplefilter("error")
    limit = Image.MAX_IMAGE_PIXELS
    # Pillow raises of the first and only warns of the second.
    for width, height, data in ((side, side, bomb), (10000, 10001, png(10000, 10001, 1, 0, b""))):
        with pytest.raises(Unreadable) as caught:
            open_image(data, WHITE)
        assert str(caught.value) == f"has more than 100 million pixels: {width * height}"
        assert limit == Image.MAX_IMAGE_PIXELS


def icon(picture: bytes) -> bytes:
    """An ICO file that promises 16 x 16 pixels and holds `picture`, a PNG file of any size."""
    return struct.pack("<3H", 0, 1, 1) + struct.pack("<4B2H2I", 16, 16, 0, 0, 1, 32, len(picture), 22) + picture


def test_a_bomb_inside_an_icon_is_found(monkeypatch):
    assert pixels(icon(png(1, 1, 8, 0, b"\0\7"))) == [[[7, 7, 7]]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(Unreadable, match="has more than 100 million pixels"):
            open_image(icon(png(26843, 26843, 1, 0, b"")), WHITE)
        monkeypatch.setattr(images, "MOST_PIXELS", 300)
        with pytest.raises(Unreadable, match=r"has more than 0\.0003 million pixels"):
            open_image(icon(png(16, 20, 8, 0, bytes(20 * 17))), WHITE)
        open_image(icon(png(16, 18, 8, 0, bytes(18 * 17))), WHITE)


def test_pillows_own_limit_neither_counts_nor_changes(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    good = encode(Image.fromarray(noise(5, 5)), "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filters = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(lambda _: open_image(good, WHITE), range(200)))
        assert warnings.filters == filters
        for how in FITS:
            fit(Image.new("RGB", (7, 6)), 4, how, WHITE)
    assert all(np.array_equal(result, noise(5, 5)) for result in results)
    with pytest.raises(Unreadable):
        open_image(good[:50], WHITE)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_an_interruption_or_a_mistake_in_the_code_is_not_the_images_fault(monkeypatch):
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(AttributeError):
        open_image(7, WHITE)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        open_image(png(1, 1, 8, 0, b"\0\7"), WHITE)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("GIF", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("BMP", {}),
    ],
)
def test_damaged_files_are_read_or_unreadable_and_nothing_else(kind, options, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MOST_PIXELS", 1_000_000)  # so that no damaged header makes this slow
    whole = encode(Image.fromarray(noise(19, 23)), kind, **options)
    path, rng, reasons = tmp_path / "damaged", random.Random(0), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for turn in range(150):
            data = bytearray(whole)
            if turn % 3 == 0:
                del data[rng.randrange(len(data)) :]
            else:
                for _ in range(turn % 3):
                    # Half of the damage goes to the headers, which a uniform draw would hardly hit.
                    data[rng.randrange(rng.choice((len(data), 64)))] ^= 1 << rng.randrange(8)
            path.write_bytes(data)
            try:
                assert open_image(path if turn % 2 else bytes(data), WHITE).mode == "RGB"
            except Unreadable as error:
                reasons.append(str(error))
    assert len(reasons) > 20
    assert all(reason and "\n" not in reason for reason in reasons)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(Unreadable):
            open_image(whole[: int(share * len(whole))], WHITE)


def test_no_file_stays_open(tmp_path):
    image, kept = Image.fromarray(noise(9, 9)), []
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"):
        data = encode(image, kind)
        (tmp_path / f"good.{kind}").write_bytes(data)
        (tmp_path / f"bad.{kind}").write_bytes(data[: len(data) // 2])
    before = len(os.listdir("/dev/fd"))
    for path in sorted(tmp_path.iterdir()) * 20:
        try:
            kept.append(open_image(path, WHITE))
        except Unreadable as error:
            kept.append(error)
    assert sum(isinstance(one, Unreadable) for one in kept) == len(kept) // 2
    assert len(os.listdir("/dev/fd")) == before
