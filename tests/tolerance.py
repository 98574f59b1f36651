"""How close is close enough: the one bound that every test uses.

    atol = c * sqrt(depth) * eps(dtype) * scale

- `depth`: how many rounded additions lie behind one value: the length of a sum, and over a chain of sums their total.
  Their errors are of either sign, so they grow as a random walk, by the square root.
- `eps(dtype)`: the gap above 1.0 of the type in which the values are kept.
- `scale`: the size of the values, their largest magnitude unless given. Give it where large terms cancel.
- `c`: 4 by default. One rounding is off by 0.29 eps on average (uniform within half of eps either way). Two
  computations with an error each are compared (x 1.4), and the worst of very many values counts (x 5), which makes 2;
  twice that allows for sums whose partial results are larger than their end.

Integers and booleans must be equal.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

C = 4.0


def tolerance(dtype, depth: float = 1.0, scale: float = 1.0, c: float = C) -> float:
    """The largest absolute error allowed, `c * sqrt(depth) * eps(dtype) * scale`; 0 for an integer or boolean dtype."""
    dtype = np.dtype(dtype)
    if dtype.kind in "iub":
        return 0.0
    return float(c * np.sqrt(max(depth, 1.0)) * float(ml_dtypes.finfo(dtype).eps) * scale)


@dataclass(frozen=True)
class Comparison:
    """One array against another. `problem` says what is wrong, and is empty if nothing is."""

    name: str
    shape: tuple[int, ...]
    max_error: float
    l2_error: float  # relative: |actual - expected| / |expected|
    bound: float
    problem: str = ""
    note: str = ""  # said of a tensor that was rightly not computed

    @property
    def ok(self) -> bool:
        return not self.problem


def compare(
    actual, expected, depth: float = 1.0, *, dtype=None, scale: float | None = None, c: float = C, name: str = "array"
) -> Comparison:
    """Compares arrays of equal shape under `tolerance(dtype, depth, scale, c)`.

    `dtype` (that of `expected`) is the type that the values were kept in, `scale` (the largest finite magnitude of
    `expected`, or 1 if that is 0) their size. NaN and infinities must stand at the same places in both.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    dtype = np.dtype(expected.dtype if dtype is None else dtype)

    def result(max_error=np.nan, l2_error=np.nan, bound=np.nan, problem=""):
        return Comparison(name, expected.shape, float(max_error), float(l2_error), float(bound), problem)

    if actual.shape != expected.shape:
        return result(problem=f"shape {list(actual.shape)}, expected {list(expected.shape)}")
    # A float in place of an integer, or the other way round, is a mistake even if the values agree.
    if (actual.dtype.kind in "iub") != (expected.dtype.kind in "iub"):
        return result(problem=f"dtype {actual.dtype}, expected {expected.dtype}")
    if expected.dtype.kind in "iub":
        wrong = np.count_nonzero(actual != expected)
        error = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
        problem = f"{wrong} of {expected.size} values differ" if wrong else ""
        return result(error.max(initial=0.0), _relative(error, expected.astype(np.float64)), 0.0, problem)

    a, e = actual.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(e)
    largest = np.abs(e[finite]).max(initial=0.0)
    bound = tolerance(dtype, depth, (largest or 1.0) if scale is None else scale, c)
    same = (a == e) | (np.isnan(a) & np.isnan(e))
    special = ~(np.isfinite(a) & finite)
    strange = np.count_nonzero(special & ~same)
    error = np.abs(a[~special] - e[~special])
    max_error, l2_error = error.max(initial=0.0), _relative(error, e[~special])
    if strange:
        return result(max_error, l2_error, bound, f"{strange} of {expected.size} values NaN or infinite in one only")
    return result(max_error, l2_error, bound, "" if max_error <= bound else f"max error above {bound:.2e}")


def assert_close(
    actual, expected, depth: float = 1.0, *, dtype=None, scale: float | None = None, c: float = C, name: str = "array"
) -> None:
    """AssertionError with the figures unless `compare` of the same arguments finds the arrays close."""
    found = compare(actual, expected, depth, dtype=dtype, scale=scale, c=c, name=name)
    assert found.ok, (
        f"{found.name} {list(found.shape)}: {found.problem} "
        f"(max error {found.max_error:.3e}, relative L2 {found.l2_error:.3e}, bound {found.bound:.3e})"
    )


def _relative(error: np.ndarray, expected: np.ndarray) -> float:
    norm, size = np.linalg.norm(error), np.linalg.norm(expected)
    return float(norm / size) if size else float(norm)
