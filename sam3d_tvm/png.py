"""Writing pictures as PNG files."""

import io
import os

import numpy as np
from PIL import Image

from sparse_ops.deploy.files import write_bytes


def save_png(path: str | os.PathLike, image: Image.Image | np.ndarray) -> None:
    """Writes a picture as PNG: a Pillow image, or uint8 `[H, W]` (grey), `[H, W, 3]` (RGB) or `[H, W, 4]` (RGBA).

    Raises ValueError for anything else, an empty picture, and as `atomic_write`.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (3, 4))):
            raise ValueError(f"image: expected uint8 [H, W], [H, W, 3] or [H, W, 4], given {image.dtype} {list(image.shape)}")
        if image.size == 0:
            raise ValueError(f"image: expected at least one pixel, given {list(image.shape)}")
        image = Image.fromarray(np.ascontiguousarray(image))
    elif not isinstance(image, Image.Image):
        raise ValueError(f"image: expected a Pillow image or a numpy array, given {type(image).__name__}")
    if 0 in image.size:
        raise ValueError(f"image: expected at least one pixel, given {image.width} x {image.height}")
    data = io.BytesIO()
    image.save(data, format="PNG")
    write_bytes(path, data.getvalue())
