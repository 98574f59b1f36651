"""Arrays of pixels brought to another size, as torch does it."""

import numpy as np


def nearest_index(old: int, new: int) -> np.ndarray:
    """int64 [new]: which of `old` pixels each of `new` ones takes, floor(i old / new), in float32 as torch's "nearest"."""
    scale = np.float32(old) / np.float32(new)
    return np.minimum((np.arange(new, dtype=np.float32) * scale).astype(np.int64), old - 1)


def resized_nearest(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[C, H, W] -> [C, *size]; every pixel is one of the image."""
    rows, columns = (nearest_index(old, new) for old, new in zip(image.shape[1:], size, strict=True))
    return image[:, rows[:, None], columns]


def resized_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 [C, H, W] -> [C, *size], without antialiasing, as torch's "bilinear" with `align_corners=False`.

    Places are float32 and rounded once, as in `tir_kernels.spec.resize_bilinear`, which says why.
    """
    for axis, (old, new) in enumerate(zip(image.shape[1:], size, strict=True), start=1):
        if old != new:
            scale = np.float64(np.float32(old) / np.float32(new))
            place = np.maximum(scale * (np.arange(new) + 0.5) - 0.5, 0).astype(np.float32)
            low = np.minimum(place.astype(np.int64), old - 1)
            share = (place - low.astype(np.float32)).reshape(-1, *[1] * (2 - axis))
            high = np.minimum(low + 1, old - 1)
            image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image
