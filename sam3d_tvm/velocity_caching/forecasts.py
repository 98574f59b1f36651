"""Velocities at a later time from the last ones that were evaluated, which lie at uneven times."""

from collections.abc import Callable

import numpy as np
from numpy.polynomial.hermite_e import hermevander

from sam3d_tvm.models.structure_flow.config import SHAPE
from sam3d_tvm.sampler import Sample

# Of times float64 [n], ascending, and a later one: what each velocity weighs in that of the later time, float64 [n].
Weigh = Callable[[np.ndarray, float], np.ndarray]


def last(times: np.ndarray, t: float) -> np.ndarray:
    """The last velocity stays."""
    return np.eye(len(times))[-1]


def linear(times: np.ndarray, t: float) -> np.ndarray:
    """On the line through the last two, v1 + (t - t1) / (t1 - t0) * (v1 - v0); the last one where there is but one."""
    weights = last(times, t)
    if len(times) > 1:
        ahead = (t - times[-1]) / (times[-1] - times[-2])
        weights[-2:] = -ahead, 1 + ahead
    return weights


def hermite(order: int) -> Weigh:
    """On the polynomial of degree `order` that is next to the velocities, by weighted least squares; of a lower degree while
    there are no more than `order` of them.

    The polynomial is a sum of probabilists' Hermite polynomials of s = (time - last time) / (mean distance of the times), and
    each velocity weighs exp(-s^2 / 2), under which these are orthogonal: the nearest ones count most. Polynomials of the degree
    come out exactly. HiCache has the k-th difference times a Hermite polynomial of k in place of k-th powers, for even steps,
    which is not exact from the second degree on.
    """

    def weigh(times: np.ndarray, t: float) -> np.ndarray:
        if len(times) == 1:
            return np.ones(1)
        degree, unit = min(order, len(times) - 1), (times[-1] - times[0]) / (len(times) - 1)
        s, ahead = (times - times[-1]) / unit, (t - times[-1]) / unit
        root = np.exp(-(s**2) / 4)  # of the weights
        return hermevander(ahead, degree) @ np.linalg.pinv(hermevander(s, degree) * root[:, None]) * root

    return weigh


class Forecasts:
    """The last `points` evaluated velocities of a run, and what `weigh` makes of them at later times.

    In a dict, as the structure is, that holds for the shape. The others, the layout, change too abruptly to be extrapolated:
    there a forecast is momentum * (the velocity before) + (1 - momentum) * (what `weigh` makes), the velocity before being the
    last one that was evaluated or forecast.
    """

    def __init__(self, weigh: Weigh, points: int, momentum: float = 0.0):
        self._weigh, self._points, self._momentum = weigh, points, momentum
        self._known: list[tuple[float, Sample]] = []
        self._before: Sample | None = None

    def learn(self, t: float, velocity: Sample) -> None:
        """Adds an evaluated velocity, in place of one at the same time, which solvers of higher order may have asked for."""
        if self._known and self._known[-1][0] == t:
            self._known.pop()
        self._known = [*self._known, (t, velocity)][-self._points :]
        self._before = velocity

    def at(self, t: float) -> Sample:
        """The velocity at a time behind those that were learnt."""
        times = np.array([time for time, _ in self._known])  # [n]
        weights = self._weigh(times, t)
        if isinstance(self._before, dict):
            found = {name: self._mean(name, weights, 0.0 if name == SHAPE else self._momentum) for name in self._before}
        else:
            found = _weighted([v for _, v in self._known], weights)
        self._before = found
        return found

    def _mean(self, name: str, weights: np.ndarray, momentum: float) -> np.ndarray:
        arrays = [v[name] for _, v in self._known]
        if momentum == 0.0:
            return _weighted(arrays, weights)
        return _weighted([*arrays, self._before[name]], np.array([*((1 - momentum) * weights), momentum]))


def _weighted(arrays: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """The sum of arrays times their weights, in float64 and in their order, as an array of their dtype."""
    total = np.zeros(arrays[0].shape)
    for weight, array in zip(weights, arrays, strict=True):
        total += weight * array.astype(np.float64)
    return total.astype(arrays[0].dtype)
