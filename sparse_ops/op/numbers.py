"""Checks of the numbers among the options of ops."""


def check_int(op: str, argument: str, value, least: int) -> int:
    """ValueError unless `value` is an int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"sparse_ops.{op}: {argument}: expected an int of at least {least}, given {value!r}")
    return value


def check_positive(op: str, argument: str, value) -> float:
    """ValueError unless `value` is a number above 0 and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ValueError(f"sparse_ops.{op}: {argument}: expected a number above 0, given {value!r}")
    return float(value)
