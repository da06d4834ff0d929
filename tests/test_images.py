"""Pictures of every kind become the RGB pixels worked out by hand here."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from pictures import WHITE, encode, noise, pixels, png
from PIL import ExifTags, Image

from infotok.data.images import Unreadable, content_digest, open_image, parse_color


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
