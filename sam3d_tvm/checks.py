"""Checks of arguments that everything here shares: a ValueError names what was given and what was expected."""

import numpy as np


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
