"""Arrays of pixels brought to another size, as torch does it."""

import numpy as np


def resized_bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """float32 [C, H, W] -> [C, *size], without antialiasing, as torch's "bilinear" with `align_corners=False`."""
    for axis, (old, new) in enumerate(zip(image.shape[1:], size, strict=True), start=1):
        if old != new:
            scale = np.float32(old) / np.float32(new)
            place = np.clip((np.arange(new, dtype=np.float32) + np.float32(0.5)) * scale - np.float32(0.5), 0, old - 1)
            low = place.astype(np.int64)
            share = (place - low).astype(np.float32).reshape(-1, *[1] * (2 - axis))
            high = np.minimum(low + 1, old - 1)
            image = image.take(low, axis) * (1 - share) + image.take(high, axis) * share
    return image
