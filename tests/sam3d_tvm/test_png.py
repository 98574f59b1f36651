"""PNG files hold what was given."""

import os

import numpy as np
import pytest
from PIL import Image

from sam3d_tvm.png import save_png


@pytest.mark.parametrize("shape", [(3, 5), (3, 5, 3), (3, 5, 4)])
def test_png(tmp_path, shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for image in (pixels, np.asfortranarray(pixels), Image.fromarray(pixels)):
        save_png(tmp_path / "x.png", image)
        with Image.open(tmp_path / "x.png") as found:
            assert found.format == "PNG"
            np.testing.assert_array_equal(np.asarray(found), pixels)


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((3, 5)), r"image: expected uint8 .* given float64 \[3, 5\]"),
        (np.zeros((3, 5, 2), np.uint8), r"image: expected uint8 .* given uint8 \[3, 5, 2\]"),
        (np.zeros((0, 5), np.uint8), r"image: expected at least one pixel, given \[0, 5\]"),
        (Image.new("RGB", (0, 4)), "image: expected at least one pixel, given 0 x 4"),
        ("x.png", "image: expected a Pillow image or a numpy array, given str"),
    ],
)
def test_what_is_no_picture(tmp_path, image, says):
    with pytest.raises(ValueError, match=says):
        save_png(tmp_path / "x.png", image)
    assert os.listdir(tmp_path) == []
