"""Which steps of a sampler are evaluated, and how the velocities of the others are forecast: settings, and what runs them.

All calls of a solver within a step are evaluated, or none.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from sam3d_tvm.checks import check_size
from sam3d_tvm.sampler import Call, Sample, VelocityCache
from sam3d_tvm.velocity_caching.forecasts import Forecasts, hermite, last, linear
from sam3d_tvm.velocity_caching.norms import check_number, norms


@dataclass(frozen=True, kw_only=True)
class EveryFew(ABC):
    """The first `warm_up` steps, the last one and every `interval`th are evaluated; velocities in between are forecast, those
    of the layout with `momentum`, see `Forecasts`. ValueError for numbers that make no sense."""

    interval: int = 3
    warm_up: int = 2
    momentum: float = 0.5

    def __post_init__(self):
        check_size("interval", self.interval, 2)
        check_size("warm_up", self.warm_up, 2)  # as many as a line needs
        check_number("momentum", self.momentum, 0.0, 1.0)

    def is_due(self, step: int, steps: int) -> bool:
        """Whether a step, counted from 0, is evaluated."""
        return step < self.warm_up or step % self.interval == 0 or step == steps - 1

    def skips(self, steps: int) -> bool:
        """Whether any of so many steps may go without an evaluation."""
        return any(not self.is_due(step, steps) for step in range(steps))

    def begin(self) -> VelocityCache:
        """What a sampler asks in one run."""
        return _EveryFew(self, self._forecasts())

    @abstractmethod
    def _forecasts(self) -> Forecasts:
        """What forecasts the velocities of one run."""


@dataclass(frozen=True, kw_only=True)
class Linear(EveryFew):
    """Velocities are extrapolated linearly in time from the last two."""

    def _forecasts(self) -> Forecasts:
        return Forecasts(linear, 2, self.momentum)


@dataclass(frozen=True, kw_only=True)
class Hermite(EveryFew):
    """Velocities lie on a polynomial of degree `order` next to the last order + 2 of them, written in Hermite polynomials, see
    `forecasts.hermite`."""

    order: int = 2

    def __post_init__(self):
        check_size("order", self.order, 1)
        super().__post_init__()

    def _forecasts(self) -> Forecasts:
        return Forecasts(hermite(self.order), self.order + 2, self.momentum)


@dataclass(frozen=True, kw_only=True)
class ErrorBounded:
    """After `warm_up` steps the last velocity is used again while the error that this is estimated to make, summed over the
    steps since, stays below `bound`; then one is evaluated, and the sum begins at 0.

    The error of a step is k |x - x'| / |v|, as a share of the velocity: x and x' the states at its beginning and at that of
    the step before, v the last evaluated velocity, k = |v - v'| / |y - y'| how fast velocities changed with the state between
    the last two that were evaluated, at the states y and y'. In a dict that array counts whose sum is greatest. The norms are
    those of Fast-SAM3D, and of EasyCache (arXiv:2507.02860) before it. With a bound of 0 every step is evaluated.
    """

    bound: float = 1.5
    warm_up: int = 3

    def __post_init__(self):
        check_number("bound", self.bound, 0.0)
        check_size("warm_up", self.warm_up, 2)  # or there would be no rate of change

    def skips(self, steps: int) -> bool:
        """Whether any of so many steps may go without an evaluation."""
        return steps > self.warm_up

    def begin(self) -> VelocityCache:
        """What a sampler asks in one run."""
        return _ErrorBounded(self)


class _EveryFew:
    """A `VelocityCache` of an `EveryFew`."""

    def __init__(self, settings: EveryFew, forecasts: Forecasts):
        self._settings, self._forecasts = settings, forecasts

    def evaluates(self, call: Call) -> bool:
        return self._settings.is_due(call.step, call.steps)

    def learn(self, call: Call, velocity: Sample) -> None:
        self._forecasts.learn(call.t, velocity)

    def forecast(self, call: Call) -> Sample:
        return self._forecasts.at(call.t)


class _ErrorBounded:
    """A `VelocityCache` of an `ErrorBounded`."""

    def __init__(self, settings: ErrorBounded):
        self._settings, self._forecasts = settings, Forecasts(last, 1)
        self._due = True
        self._before: Sample | None = None  # the state at the beginning of the step before
        self._evaluated: tuple[Sample, Sample] | None = None  # the state of the last evaluation that began a step, its velocity
        self._rates = self._errors = np.zeros(1)  # [arrays of the state]: k / |v|, and the sum of errors

    def evaluates(self, call: Call) -> bool:
        if call.first:
            self._due = call.step < self._settings.warm_up or not self._stays_below(call)
            if self._due:
                self._errors = np.zeros(1)
            self._before = call.x
        return self._due

    def _stays_below(self, call: Call) -> bool:
        with np.errstate(invalid="ignore"):  # infinite rates times 0, which is no number, and not below anything
            self._errors = self._errors + self._rates * norms(call.x, self._before)
        return bool((self._errors < self._settings.bound).all())

    def learn(self, call: Call, velocity: Sample) -> None:
        self._forecasts.learn(call.t, velocity)
        if not call.first:
            return
        if self._evaluated is not None:
            x, v = self._evaluated
            change, way = norms(velocity, v), norms(call.x, x) * norms(velocity)
            self._rates = np.divide(change, way, out=np.where(change == 0, 0.0, np.inf), where=way != 0)
        self._evaluated = call.x, velocity

    def forecast(self, call: Call) -> Sample:
        return self._forecasts.at(call.t)
