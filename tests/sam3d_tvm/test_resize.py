"""Resizing is torch's, to the pixel that is taken and to the last bits of a place."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sam3d_tvm.resize import nearest_index, resized_bilinear, resized_nearest
from tests.tolerance import assert_close


def like(image: np.ndarray, size: tuple[int, int]):
    return partial(F.interpolate, torch.from_numpy(image)[None], size)


@given(st.integers(1, 40), st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40)))
def test_small_images(height, width, size):
    image = np.random.default_rng(size).random((2, height, width), np.float32)
    torchs = like(image, size)
    np.testing.assert_array_equal(resized_nearest(image, size), torchs(mode="nearest")[0].numpy())
    assert_close(resized_bilinear(image, size), torchs(mode="bilinear", align_corners=False)[0].numpy(), depth=4)


@pytest.mark.parametrize("old, new", [((300, 400), (3000, 700)), ((700, 900), (518, 518)), ((5, 2000), (7, 4000))])
def test_places_in_large_images_are_rounded_once(old, new):
    """Rounded twice they would be off by a step of a number as large as the image, 1e-5 of noise some hundred pixels wide."""
    image = np.random.default_rng(0).random((1, *old), np.float32)
    expected = like(image, new)(mode="bilinear", align_corners=False)[0].numpy()
    assert_close(resized_bilinear(image, new), expected, depth=4)


@pytest.mark.parametrize("old, new", [(518, 256), (333, 256), (100, 30), (7, 3), (1, 8), (4000, 64)])
def test_nearest_index(old, new):
    pixels = torch.arange(old, dtype=torch.float32).reshape(1, 1, old)
    np.testing.assert_array_equal(nearest_index(old, new), F.interpolate(pixels, new, mode="nearest").long().flatten())
