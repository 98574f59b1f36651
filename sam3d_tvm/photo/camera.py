"""The camera that took a photo: its intrinsics in fractions of the photo's sides, as MoGe has them."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class PhotoCamera:
    """intrinsics: float64 [3, 3], [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], which takes points in the axes of OpenCV to fractions
    of width and height from the photo's top left corner. size: width and height of the photo as it is seen, in pixels."""

    intrinsics: np.ndarray
    size: tuple[int, int]

    @property
    def fov(self) -> tuple[float, float]:
        """The angles of view, horizontal and vertical, in degrees, of a camera whose middle is that of the photo."""
        return tuple(math.degrees(2 * math.atan(0.5 / float(self.intrinsics[i, i]))) for i in range(2))

    def as_json(self) -> dict[str, Any]:
        """What intrinsics.json holds, and pose.json of the photo's camera."""
        across, down = self.fov
        return {"intrinsics": self.intrinsics.tolist(), "size": list(self.size), "fov_x": across, "fov_y": down}


def in_fractions(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics [3, 3] in pixels of pictures of that width and height, the middle of the first at 0, in fractions of both,
    from the corner: float64 [3, 3]."""
    found = np.array(matrix, np.float64)
    found[:2, 2] += 0.5
    return found / np.array([[size[0]], [size[1]], [1.0]])


def in_pixels(matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Intrinsics [3, 3] in fractions of width and height in pixels, float64 [3, 3]: the inverse of `in_fractions`."""
    found = np.diag([*size, 1.0]) @ matrix
    found[:2, 2] -= 0.5
    return found
