"""Pictures of every shape become squares."""

from __future__ import annotations

import numpy as np
import pytest
from pictures import WHITE, noise
from PIL import Image

from infotok.data.images import FITS, fit

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
