"""Checks of arguments that everything here shares: a ValueError names what was given and what was expected."""

import numpy as np


class Failure(ValueError):
    """What was asked for makes sense, and came to nothing all the same."""


def check_size(name: str, value: int, least: int) -> None:
    """ValueError unless `value` is an integer of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, given {value!r}")


def check_choice(name: str, value, choices) -> None:
    """ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, given {value!r}")


def check_finite(name: str, array: np.ndarray) -> None:
    """ValueError for NaN or infinity in `array`."""
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite values, given {np.count_nonzero(~np.isfinite(array))} that are not")


def check_coords(coords: np.ndarray, batch: int, resolution: int) -> None:
    """ValueError for the first row of coords int32 [N, 4] out of range or out of order. Duplicates are not looked for."""
    limits = np.array([batch, resolution, resolution, resolution])
    beyond = (coords < 0) | (coords >= limits)
    if beyond.any():
        row, column = np.argwhere(beyond)[0]
        axis = ("batch index", "x", "y", "z")[column]
        raise ValueError(f"coords: expected {axis} from 0 to {limits[column] - 1}, given {coords[row, column]} in row {row}")
    if (falls := np.flatnonzero(np.diff(coords[:, 0]) < 0)).size:
        row = falls[0] + 1
        raise ValueError(
            "coords: expected the rows of each batch element together, ascending by batch index, given "
            f"{coords[row, 0]} after {coords[row - 1, 0]} in row {row}"
        )
