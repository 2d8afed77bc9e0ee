"""Warping: OpenCV's bilinear interpolation, written out."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cyclical_lr.data.warp import warp


@settings(max_examples=25)
@given(st.integers(1, 700), st.integers(1, 700), st.integers(0, 255), st.integers(0, 255))
def test_a_pixel_is_interpolated_between_its_four_neighbours(height, width, row, column):
    image = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    warped = warp(image)
    assert (warped.shape, warped.dtype) == ((256, 256, 3), np.uint8)

    y = min(max((row + 0.5) * height / 256 - 0.5, 0), height - 1)
    x = min(max((column + 0.5) * width / 256 - 0.5, 0), width - 1)
    expected = np.zeros(3)
    for i, along in ((int(y), 1 - y % 1), (min(int(y) + 1, height - 1), y % 1)):
        for j, across in ((int(x), 1 - x % 1), (min(int(x) + 1, width - 1), x % 1)):
            expected += along * across * image[i, j]
    assert np.abs(warped[row, column] - expected).max() <= 0.501


def test_an_image_of_the_right_size_is_left_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    assert np.array_equal(warp(image), image)


def test_the_aspect_ratio_is_ignored_and_no_side_is_cropped():
    image = np.zeros((60, 400, 3), np.uint8)
    image[:, :100], image[30:, :, 1] = (255, 0, 0), 255
    warped = warp(image)
    assert warped[0, :62].tolist() == [[255, 0, 0]] * 62 and not warped[:120, 66:].any()
    assert (warped[136:, :, 1] == 255).all() and not warped[:120, :, 1].any()
