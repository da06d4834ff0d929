"""Pictures of every kind become the RGB pixels worked out by hand here; broken ones become Unreadable, nothing else."""

from __future__ import annotations

import io
import os
import random
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from infotok.data import images
from infotok.data.images import FITS, Unreadable, content_digest, fit, open_image, parse_color

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


# --- what the pixels are ---


@pytest.mark.parametrize(
    ("mode", "pixel", "expected", "tolerance"),
    [
        ("1", 255, (255, 255, 255), 0),
        ("L", 100, (100, 100, 100), 0),
        ("LA", (100, 128), (177, 177, 177), 0),  # 100 * 128/255 + 255 * 127/255 = 177.2
        ("La", (50, 128), (177, 177, 177), 1),  # the same, multiplied already
        ("RGB", (1, 2, 3), (1, 2, 3), 0),
        ("RGBA", (255, 0, 0, 128), (255, 127, 127), 0),
        ("RGBA", (9, 9, 9, 0), (255, 255, 255), 0),
        ("RGBA", (9, 8, 7, 255), (9, 8, 7), 0),
        ("RGBa", (128, 0, 0, 128), (255, 127, 127), 1),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3), 0),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0), 0),
        ("YCbCr", (76, 85, 255), (255, 0, 0), 2),  # 0.299 * 255 = 76
        ("LAB", (255, 128, 128), (255, 255, 255), 1),
        ("HSV", (0, 255, 255), (255, 0, 0), 0),
    ],
)
def test_a_pixel_of_every_mode(mode, pixel, expected, tolerance):
    image = Image.new(mode, (1, 1))
    image.putpixel((0, 0), pixel)
    result = open_image(image, WHITE)
    assert result.mode == "RGB"
    assert np.abs(np.subtract(result.getpixel((0, 0)), expected)).max() <= tolerance


def test_transparent_red_lies_over_the_background():
    image = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert pixels(encode(image, "PNG"), (0, 0, 255)) == [[[128, 0, 127]]]


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 255, 0, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    assert pixels(encode(image, "PNG")) == [[[10, 20, 30], [255, 0, 0], [0, 0, 255]]]
    one = encode(image, "PNG", transparency=1)
    assert pixels(one) == [[[10, 20, 30], [255, 255, 255], [0, 0, 255]]]
    each = encode(image, "PNG", transparency=bytes([0, 128, 255]))
    assert pixels(each) == [[[255, 255, 255], [255, 127, 127], [0, 0, 255]]]
    assert pixels(encode(image, "GIF", transparency=2)) == [[[10, 20, 30], [255, 0, 0], [255, 255, 255]]]
    both = Image.new("PA", (1, 1))
    both.putpalette([255, 0, 0])
    both.putpixel((0, 0), (0, 128))
    assert pixels(both) == [[[255, 127, 127]]]


def test_one_transparent_color_of_a_png_without_alpha():
    gray = png(2, 1, 8, 0, bytes([0, 7, 9]), (b"tRNS", struct.pack(">H", 7)))
    assert pixels(gray, (1, 2, 3)) == [[[1, 2, 3], [9, 9, 9]]]
    color = png(2, 1, 8, 2, bytes([0, 7, 8, 9, 7, 8, 8]), (b"tRNS", struct.pack(">3H", 7, 8, 9)))
    assert pixels(color) == [[[255, 255, 255], [7, 8, 8]]]
    deep = png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 514, 515), (b"tRNS", struct.pack(">H", 514)))
    assert pixels(deep) == [[[255] * 3, [2] * 3]]


def test_sixteen_bits_become_eight():
    assert pixels(png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 65535, 128 * 257))) == [[[255] * 3, [128] * 3]]
    values = np.array([[0, 128, 129, 65535]], dtype=np.uint16)  # 128/257 rounds down, 129/257 up
    expected = [[[0] * 3, [0] * 3, [1] * 3, [255] * 3]]
    assert pixels(Image.fromarray(values)) == expected
    assert pixels(encode(Image.fromarray(values), "TIFF")) == expected
    for mode, order in (("I;16", "<u2"), ("I;16L", "<u2"), ("I;16B", ">u2")):
        assert pixels(Image.frombytes(mode, (4, 1), values.astype(order).tobytes())) == expected, mode


def test_mode_i_counts_as_sixteen_bits_only_beyond_255():
    assert pixels(Image.fromarray(np.array([[0, 128, 255]], dtype=np.int32))) == [[[0] * 3, [128] * 3, [255] * 3]]
    assert pixels(Image.fromarray(np.array([[128, 256]], dtype=np.int32))) == [[[0] * 3, [1] * 3]]
    wide = Image.fromarray(np.array([[-5, 257, 65535, 2**31 - 1]], dtype=np.int32))
    assert pixels(wide) == [[[0] * 3, [1] * 3, [255] * 3, [255] * 3]]


def test_mode_f_counts_as_fractions_only_up_to_one():
    fractions = Image.fromarray(np.array([[-1, 0.2, 1]], dtype=np.float32))
    assert pixels(fractions) == [[[0] * 3, [51] * 3, [255] * 3]]
    assert pixels(encode(fractions, "TIFF")) == [[[0] * 3, [51] * 3, [255] * 3]]
    levels = Image.fromarray(np.array([[0.2, 51.6, 300]], dtype=np.float32))
    assert pixels(levels) == [[[0] * 3, [52] * 3, [255] * 3]]
    for value in (np.nan, np.inf):
        with pytest.raises(Unreadable, match="not finite"):
            open_image(Image.fromarray(np.array([[value, 1]], dtype=np.float32)), WHITE)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (8, 8), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    for kind, options in (("GIF", {}), ("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert Image.open(io.BytesIO(data)).n_frames == 3
        assert pixels(data) == [[[255, 0, 0]] * 8] * 8, kind


# How the definition of the EXIF tag stores the upright image AB/CD/EF: where its first row and first column lie.
STORED = {
    1: "AB CD EF",
    2: "BA DC FE",
    3: "FE DC BA",
    4: "EF CD AB",
    5: "ACE BDF",
    6: "BDF ACE",
    7: "FDB ECA",
    8: "ECA FDB",
}


def draw(letters: str) -> np.ndarray:
    """Squares of 8 x 8 pixels, A to F from dark to light, as JPEG stores them almost exactly."""
    levels = np.array([[50 * "ABCDEF".index(letter) for letter in row] for row in letters.split()], dtype=np.uint8)
    return np.repeat(np.kron(levels, np.ones((8, 8), dtype=np.uint8))[:, :, None], 3, axis=2)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 100}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
@pytest.mark.parametrize("orientation", STORED)
def test_every_exif_orientation_is_turned_upright(orientation, kind, options):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(Image.fromarray(draw(STORED[orientation])), kind, exif=exif, **options)
    upright = open_image(data, WHITE)
    for result in (upright, open_image(Image.open(io.BytesIO(data)), WHITE), open_image(upright, WHITE)):
        assert result.size == (16, 24)
        assert np.abs(np.asarray(result).astype(int) - draw("AB CD EF")).max() <= (2 if kind == "JPEG" else 0)


def test_a_damaged_exif_block_does_not_cost_the_image():
    image = Image.fromarray(noise(3, 2))
    data = encode(image, "PNG", exif=b"Exif\0\0 this is no TIFF header")
    with pytest.raises(SyntaxError):
        Image.open(io.BytesIO(data)).getexif()
    assert np.array_equal(open_image(data, WHITE), image)


LONG = bytes(2_000_000)  # above Pillow's limit of a text, a megabyte


@pytest.mark.parametrize(
    "chunks",
    [
        [(b"zTXt", b"workflow\0\0" + zlib.compress(LONG))],
        [(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LONG))],
        [(b"iCCP", b"profile\0\0" + zlib.compress(LONG))],
        [(b"zTXt", b"part\0\0" + zlib.compress(bytes(1_000_000)))] * 70,  # 70 MB, above the limit of all
        [(b"iCCP", b"profile\0\7no method of compression")],
        [(b"gAMA", b"\0")],
    ],
    ids=["text", "international text", "profile", "many texts", "unknown profile", "short gamma"],
)
def test_what_stands_beside_the_pixels_of_a_png_does_not_cost_the_image(chunks, tmp_path):
    good = png(2, 1, 8, 0, bytes([0, 7, 9]), (b"tRNS", struct.pack(">H", 7)), *chunks)
    with pytest.raises((ValueError, OSError)):
        Image.open(io.BytesIO(good)).load()
    (tmp_path / "good.png").write_bytes(good)
    for source in (good, tmp_path / "good.png"):
        assert pixels(source, (1, 2, 3)) == [[[1, 2, 3], [9, 9, 9]]]
    for cut in (-24, -30):  # but a file without all of its pixels stays unreadable
        with pytest.raises(Unreadable, match=r"truncated|cannot be decoded|no image"):
            open_image(good[:cut], WHITE)


def test_a_png_with_a_long_text_is_still_turned_upright():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    data = encode(Image.fromarray(draw(STORED[6])), "PNG", exif=exif)
    text = zlib.compress(LONG)
    chunk = struct.pack(">I", len(text) + 3) + b"zTXt" + b"a\0\0" + text
    chunk += struct.pack(">I", zlib.crc32(chunk[4:]))
    long = data[:33] + chunk + data[33:]  # behind the header
    assert np.array_equal(open_image(long, WHITE), draw("AB CD EF"))


def test_a_pillow_image_is_left_as_it_was():
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 128))
    result = open_image(image, WHITE)
    result.putpixel((0, 0), (0, 0, 0))
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (255, 0, 0, 128)
    plain = Image.new("RGB", (2, 2))
    assert open_image(plain, WHITE) is not plain


# --- what is unreadable ---


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


# --- fitting ---

# 4 wide and 2 high; one digit is one gray level.
WIDE = np.repeat(np.array([[1, 2, 3, 4], [5, 6, 7, 8]], dtype=np.uint8)[:, :, None], 3, axis=2)


def gray(levels: np.ndarray) -> list:
    assert levels.dtype == np.uint8
    assert levels.shape[2] == 3
    assert (levels == levels[:, :, :1]).all()
    return levels[:, :, 0].tolist()


def test_crop_keeps_the_central_square():
    assert gray(fit(Image.fromarray(WIDE), 2, "crop", WHITE)) == [[2, 3], [6, 7]]
    assert gray(fit(Image.fromarray(WIDE.transpose(1, 0, 2)), 2, "crop", WHITE)) == [[2, 6], [3, 7]]
    assert gray(fit(Image.fromarray(WIDE[:, :3]), 2, "crop", WHITE)) == [[1, 2], [5, 6]]


def test_pad_centers_the_whole_image_on_the_background():
    edge = [9] * 4
    assert gray(fit(Image.fromarray(WIDE), 4, "pad", (9, 9, 9))) == [edge, [1, 2, 3, 4], [5, 6, 7, 8], edge]
    tall = gray(fit(Image.fromarray(WIDE.transpose(1, 0, 2)), 4, "pad", (9, 9, 9)))
    assert tall == [[9, 1, 5, 9], [9, 2, 6, 9], [9, 3, 7, 9], [9, 4, 8, 9]]


def test_stretch_scales_both_sides_and_does_not_alias():
    square = np.repeat(np.array([[0, 90], [100, 210]], dtype=np.uint8)[:, :, None], 3, axis=2)
    assert gray(fit(Image.fromarray(square), 1, "stretch", WHITE)) == [[100]]  # both filters are symmetric: the mean
    assert gray(fit(Image.fromarray(np.full((3, 7, 3), 77, dtype=np.uint8)), 2, "stretch", WHITE)) == [[77, 77]] * 2
    stripes = np.zeros((64, 128, 3), dtype=np.uint8)
    stripes[:, ::2] = 200
    middle = fit(Image.fromarray(stripes), 16, "stretch", WHITE)[:, 2:-2]
    assert middle.min() >= 99
    assert middle.max() <= 101


@pytest.mark.parametrize("how", FITS)
def test_an_image_of_the_right_size_comes_back_bit_for_bit(how):
    assert np.array_equal(fit(Image.fromarray(noise(16, 16)), 16, how, WHITE), noise(16, 16))


@pytest.mark.parametrize("how", FITS)
@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1), (1, 1_000_000), (3, 200_000)])
def test_extreme_shapes_fit_without_extreme_memory(size, how, monkeypatch):
    resize, largest = Image.Image.resize, []

    def watched(image, new_size, *arguments):
        largest.append(new_size[0] * max(image.height, new_size[1]))  # Pillow scales the width first
        return resize(image, new_size, *arguments)

    monkeypatch.setattr(Image.Image, "resize", watched)
    color = np.array([100, 151, 202], dtype=np.uint8)
    result = fit(Image.new("RGB", size, tuple(color.tolist())), 32, how, (0, 0, 0))
    assert result.shape == (32, 32, 3)
    assert max(largest) <= max(size[0] * size[1], 64 * 32 * 32)
    inside = result.any(axis=2)
    assert (result[inside] == color).all()
    assert inside.sum() == (32 if how == "pad" and size != (1, 1) else 32 * 32)


def test_shrinking_in_steps_keeps_everything_in_its_place():
    # Four bands of 5000 + 3 rows, far more than 64-fold: after scaling each fills 8 of 32 rows.
    bands = np.repeat(np.array([0, 80, 160, 240], dtype=np.uint8), 5003)
    image = Image.fromarray(np.broadcast_to(bands[:, None, None], (len(bands), 2, 3)).copy())
    column = fit(image, 32, "stretch", WHITE)[:, 7, 0].reshape(4, 8)
    assert (column[:, 3:5] == [[0, 0], [80, 80], [160, 160], [240, 240]]).all()
    assert (np.abs(column.astype(int) - [[0], [80], [160], [240]]) <= 12).all()


def test_an_unknown_fit_names_the_known_ones():
    with pytest.raises(ValueError, match="unknown fit 'cover'; known: crop, pad, stretch"):
        fit(Image.new("RGB", (1, 1)), 1, "cover", WHITE)


# --- digests and colors ---


def test_the_digest_is_of_the_pixels_and_the_shape_alone():
    image = Image.fromarray(noise(6, 4))
    digest = content_digest(image)
    assert len(digest) == 16
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        assert content_digest(open_image(encode(image, kind), WHITE)) == digest
    changed = noise(6, 4)
    changed[5, 3, 2] ^= 1
    others = [changed, noise(6, 4).reshape(4, 6, 3), noise(6, 4).reshape(2, 12, 3)]
    assert len({digest, *(content_digest(Image.fromarray(other)) for other in others)}) == 4


@pytest.mark.parametrize(
    ("text", "color"),
    [("#ffffff", WHITE), ("#010aFF", (1, 10, 255)), ("#f00", (255, 0, 0)), ("white", WHITE), ("rgb(1,2,3)", (1, 2, 3))],
)
def test_colors_are_parsed(text, color):
    assert parse_color(text) == color


@pytest.mark.parametrize("text", ["", "whitish", "#ffffff80", "ffffff", "rgb(300, 0, 0)", "hsl(0,300%,10%)", "x" * 500])
def test_what_is_no_color_is_named(text):
    with pytest.raises(ValueError, match="is no color"):
        parse_color(text)
