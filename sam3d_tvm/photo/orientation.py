"""The EXIF tag that says how a photo lies in its file, and what turns arrays and points upright.

A photo whose camera was held on its side is kept as the sensor saw it, and a tag from 1 to 8 says how to turn it.
"""

import numpy as np

UPRIGHT = 1
# By orientation: axes of [rows, columns] that are flipped, then whether rows and columns change places.
_TURNS = {
    1: ((), False),
    2: ((1,), False),
    3: ((0, 1), False),
    4: ((0,), False),
    5: ((), True),
    6: ((0,), True),
    7: ((0, 1), True),
    8: ((1,), True),
}


def upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """A view of an array [H, W, ...] as it was in the file, turned as `orientation` asks."""
    flips, swap = _TURNS[orientation]
    array = np.flip(array, flips)
    return array.swapaxes(0, 1) if swap else array


def as_in_file(array: np.ndarray, orientation: int) -> np.ndarray:
    """The inverse of `upright`: a view of an upright array [H, W, ...] as it lies in the file."""
    flips, swap = _TURNS[orientation]
    return np.flip(array.swapaxes(0, 1) if swap else array, flips)


def upright_points(points: np.ndarray, orientation: int) -> np.ndarray:
    """Points float [3, H, W] of a camera that lay as the file does, turned with it: pixels, and x and y of each point."""
    flips, swap = _TURNS[orientation]
    turned = np.stack([upright(plane, orientation) for plane in points])
    for axis in flips:
        np.negative(turned[1 - axis], out=turned[1 - axis])  # rows are along y, columns along x
    return turned[[1, 0, 2]] if swap else turned


def swaps_sides(orientation: int) -> bool:
    """Whether width and height change places."""
    return _TURNS[orientation][1]


def in_words(orientation: int) -> str:
    """What the tag asks for."""
    words = {
        1: "no turn",
        2: "mirrored",
        3: "turned by 180 degrees",
        4: "mirrored upside down",
        5: "mirrored and turned by 270 degrees clockwise",
        6: "turned by 90 degrees clockwise",
        7: "mirrored and turned by 90 degrees clockwise",
        8: "turned by 90 degrees counterclockwise",
    }
    return words[orientation]
