"""Flow samplers in numpy: time sequences, solvers and classifier-free guidance, for any model of a velocity; and `Evaluations`,
by which some velocities are forecast and not evaluated.

A sampler integrates dx/dt = v(x, t) from noise at t = 0 to data at t = 1. Two of them exist, as in SAM-3D-Objects:

- `sample_flow` (flow matching) walks times built in float32;
- `sample_shortcut` walks times built in float64 and also tells the model the length of a step, `d`.

The precision matters: it decides on which side of the end of a guidance interval a step falls. The state keeps its own
dtype throughout. A state is one array, or a dict of arrays that are integrated together.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from numbers import Real
from typing import Protocol, TypeAlias

import numpy as np

from sam3d_tvm.checks import check_finite

Sample: TypeAlias = np.ndarray | dict[str, np.ndarray]


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: v = (1 + strength) * v_conditional - strength * v_unconditional.

    It applies to calls whose time, as the model sees it (t * time_scale), lies in `interval`, both ends included and
    compared in float32; elsewhere the model is called once, with its condition. `interval=None` switches guidance off
    whatever the strength.

    Raises ValueError for a strength that is not finite, or an interval that is not two finite, ascending numbers.
    """

    strength: float
    interval: tuple[float, float] | None = (0.0, 500.0)

    def __post_init__(self):
        _finite("strength", self.strength)
        if self.interval is None:
            return
        ends = tuple(self.interval) if isinstance(self.interval, Iterable) else ()
        if len(ends) != 2 or not all(_is_finite(end) for end in ends) or ends[0] > ends[1]:
            raise ValueError(f"interval: expected None or finite numbers (low, high), given {self.interval!r}")
        object.__setattr__(self, "interval", (float(ends[0]), float(ends[1])))

    def applies(self, time: float) -> bool:
        """Whether a call at `time` (t * time_scale) is guided."""
        if self.strength == 0 or self.interval is None:
            return False
        low, high = self.interval
        return bool(np.float32(low) <= np.float32(time) <= np.float32(high))


@dataclass(frozen=True)
class Step:
    """What `on_step` is told after a step: its index of `steps`, the times it went from and to, and the new state."""

    index: int
    steps: int
    start: float
    stop: float
    x: Sample


@dataclass(frozen=True)
class Call:
    """A velocity that a solver asks for in `step` of `steps`, at the time `t` from 0 to 1, where the state is `x`.

    first: whether it is the first one of its step; midpoint and rk4 ask for several.
    """

    step: int
    steps: int
    first: bool
    t: float
    x: Sample


class VelocityCache(Protocol):
    """Decides which velocities of one run of a sampler are evaluated, and forecasts the others. It sees the velocities that are
    followed, guided ones where there is guidance, so that a forecast saves the evaluations with and without a condition."""

    def evaluates(self, call: Call) -> bool:
        """Whether this velocity is to be evaluated. Asked of every call, once and in order."""

    def learn(self, call: Call, velocity: Sample) -> None:
        """Told every evaluated velocity. What it keeps of it, it must not change."""

    def forecast(self, call: Call) -> Sample:
        """The velocity of a call that is not evaluated, in the form of `call.x`."""


class GuidanceCache(Protocol):
    """Decides which guided velocities of one run are evaluated without the condition, too."""

    def evaluates(self, call: Call) -> bool:
        """Whether the velocity without the condition is to be evaluated. Asked of every guided call that is evaluated."""

    def learn(self, call: Call, conditional: Sample, unconditional: Sample, strength: float) -> None:
        """Told both velocities where they were evaluated."""

    def guide(self, conditional: Sample, strength: float) -> Sample:
        """The guided velocity of a call for which the one without the condition was not evaluated."""


class Evaluations:
    """What one run of a sampler evaluates, and a count of that; everything without `cache` and `guidance_cache`.

    conditional, unconditional: evaluations so far; forecast: velocities that were forecast; steps: those in which something was
    evaluated. With several views of an object a conditional evaluation is that of all that count.
    with_unconditional: while the velocity with the condition is evaluated, whether the one without will be asked for right
    after, for models that compute both at once.
    """

    def __init__(self, cache: VelocityCache | None = None, guidance_cache: GuidanceCache | None = None):
        self.cache, self.guidance_cache = cache, guidance_cache
        self.conditional = self.unconditional = self.forecast = self.steps = 0
        self.with_unconditional = False

    @property
    def in_all(self) -> int:
        """How often the model was evaluated, with the condition or without."""
        return self.conditional + self.unconditional

    def counts(self) -> dict[str, int]:
        """The counts of evaluations by name, as JSON has them."""
        return {name: getattr(self, name) for name in ("conditional", "unconditional", "forecast")}


def flow_schedule(steps: int, rescale_t: float = 1.0, dtype: np.typing.DTypeLike = np.float32) -> np.ndarray:
    """Times of a flow, `[steps + 1]` of `dtype` from 0 to 1: t / (1 + (rescale_t - 1) * (1 - t)) of equal steps t.

    `rescale_t` above 1 puts more of the steps at small t. All arithmetic is in `dtype`, float32 or float64.

    Raises ValueError for steps < 1, a rescale_t that is not finite and positive, or another dtype.
    """
    _count("steps", steps)
    _positive("rescale_t", rescale_t)
    dtype = np.dtype(dtype)
    if dtype == np.float32:
        t = _linspace_float32(steps)
    elif dtype == np.float64:
        t = np.linspace(0.0, 1.0, steps + 1)
    else:
        raise ValueError(f"dtype: expected float32 or float64, given {dtype}")
    one = dtype.type(1)
    return t / (one + dtype.type(rescale_t - 1) * (one - t))


def sample_flow(
    velocity: Callable[[Sample, np.float32, bool], Sample],
    x0: Sample,
    steps: int,
    *,
    rescale_t: float = 1.0,
    guidance: Guidance | None = None,
    solver: str = "euler",
    time_scale: float = 1000.0,
    on_step: Callable[[Step], None] | None = None,
    evaluations: Evaluations | None = None,
) -> Sample:
    """Flow matching: the state at t = 1, of the shapes and dtypes of `x0`, the state at t = 0.

    `velocity(x, time, conditional)` returns dx/dt in the form of `x`, at `time` = float32(t * time_scale); with
    `conditional` False it is to leave its condition out. It must not change `x`. `solver` is one of `SOLVERS`: "euler",
    "midpoint" or "rk4", which call the velocity 1, 2 and 4 times a step. `on_step` is called after every step. `evaluations`
    decides which velocities are evaluated, and counts them; it serves one run.

    Raises ValueError for steps < 1, a rescale_t or time_scale that is not finite and positive, an unknown solver, an
    `x0` that is not made of finite float32 or float64 arrays, `evaluations` of another run, and a velocity of other keys,
    shapes or dtypes than `x0` or with values that are not finite.
    """
    times = flow_schedule(steps, rescale_t, np.float32)
    return _integrate(velocity, x0, times, guidance, solver, time_scale, on_step, evaluations)


def sample_shortcut(
    velocity: Callable[[Sample, np.float32, np.float32, bool], Sample],
    x0: Sample,
    steps: int,
    *,
    rescale_t: float = 1.0,
    guidance: Guidance | None = None,
    no_shortcut: bool = False,
    solver: str = "euler",
    time_scale: float = 1000.0,
    on_step: Callable[[Step], None] | None = None,
    evaluations: Evaluations | None = None,
) -> Sample:
    """Shortcut model: as `sample_flow`, but `velocity(x, time, d, conditional)` also takes the length of a step.

    `d` = float32(time_scale / steps), whatever `rescale_t`; 0 with `no_shortcut`, which makes it a plain flow.
    Times are built in float64. Raises ValueError as `sample_flow` does.
    """
    times = flow_schedule(steps, rescale_t, np.float64)
    _positive("time_scale", time_scale)
    d = np.float32(0.0 if no_shortcut else 1.0 / steps * time_scale)

    def at_d(x: Sample, time: np.float32, conditional: bool) -> Sample:
        return velocity(x, time, d, conditional)

    return _integrate(at_d, x0, times, guidance, solver, time_scale, on_step, evaluations)


# A solver goes from x at t to the state at t + dt. `v(x, t)` is the velocity; t and dt are scalars of the schedule's
# dtype, in which the times of inner stages are computed too.
_Velocity: TypeAlias = Callable[[Sample, np.floating], Sample]


def _euler(v: _Velocity, x: Sample, t: np.floating, dt: np.floating) -> Sample:
    return _axpy(dt, v(x, t), x)


def _midpoint(v: _Velocity, x: Sample, t: np.floating, dt: np.floating) -> Sample:
    half = dt * type(dt)(0.5)
    return _axpy(dt, v(_axpy(half, v(x, t), x), t + half), x)


def _rk4(v: _Velocity, x: Sample, t: np.floating, dt: np.floating) -> Sample:
    half = dt * type(dt)(0.5)
    k1 = v(x, t)
    k2 = v(_axpy(half, k1, x), t + half)
    k3 = v(_axpy(half, k2, x), t + half)
    k4 = v(_axpy(dt, k3, x), t + dt)
    slope = _map(lambda a, b, c, d: a + 2 * b + 2 * c + d, k1, k2, k3, k4)
    return _axpy(dt / type(dt)(6), slope, x)


SOLVERS = {"euler": _euler, "midpoint": _midpoint, "rk4": _rk4}


def _integrate(velocity, x0, times, guidance, solver, time_scale, on_step, evaluations) -> Sample:
    """Walks `times` [steps + 1] with one solver; `velocity(x, time, conditional)`."""
    _positive("time_scale", time_scale)
    if solver not in SOLVERS:
        raise ValueError(f"solver: expected one of {', '.join(SOLVERS)}, given {solver!r}")
    if guidance is not None and not isinstance(guidance, Guidance):
        raise ValueError(f"guidance: expected a Guidance or None, given {type(guidance).__name__}")
    x, made = _checked_state(x0), Evaluations() if evaluations is None else evaluations
    if not isinstance(made, Evaluations):
        raise ValueError(f"evaluations: expected an Evaluations or None, given {type(made).__name__}")
    if made.in_all or made.forecast:
        raise ValueError(f"evaluations: expected those of no other run, given {made.in_all} that were made")

    def evaluated(call: Call, time: np.float32) -> Sample:
        guided = guidance is not None and guidance.applies(time)
        reused = guided and made.guidance_cache is not None and not made.guidance_cache.evaluates(call)
        made.with_unconditional = guided and not reused
        made.conditional += 1
        v = _checked_velocity(velocity(call.x, time, True), call.x, time)
        if not guided:
            return v
        s = guidance.strength
        if reused:
            return _checked_velocity(made.guidance_cache.guide(v, s), call.x, time)
        made.unconditional += 1
        u = _checked_velocity(velocity(call.x, time, False), call.x, time)
        if made.guidance_cache is not None:
            made.guidance_cache.learn(call, v, u, s)
        # Kept as two products, as upstream has it: v + s * (v - u) rounds differently.
        return _map(lambda v, u: v.dtype.type(1 + s) * v - v.dtype.type(s) * u, v, u)

    def followed(call: Call, time: np.float32) -> Sample:
        if made.cache is not None and not made.cache.evaluates(call):
            made.forecast += 1
            return _checked_velocity(made.cache.forecast(call), call.x, time)
        v = evaluated(call, time)
        if made.cache is not None:
            made.cache.learn(call, v)
        return v

    steps = len(times) - 1
    for index, (start, stop) in enumerate(pairwise(times)):
        before, asked = made.conditional, 0

        def at(x: Sample, t: np.floating, index: int = index) -> Sample:
            nonlocal asked
            asked += 1
            return followed(Call(index, steps, asked == 1, float(t), x), np.float32(t * type(t)(time_scale)))

        x = SOLVERS[solver](at, x, start, stop - start)
        made.steps += made.conditional > before
        if on_step is not None:
            on_step(Step(index, steps, float(start), float(stop), x))
    return x


def _linspace_float32(steps: int) -> np.ndarray:
    """0 to 1 in equal steps, [steps + 1] float32, by torch.linspace's rounding: from the left up to the middle, from
    the right beyond it, there with one rounding (a fused multiply-subtract, which float64 gives)."""
    i = np.arange(steps + 1)
    step = np.float32(1) / np.float32(steps)
    left = step * i.astype(np.float32)
    right = (1.0 - np.float64(step) * (steps - i)).astype(np.float32)
    return np.where(i < (steps + 1) // 2, left, right)


def _map(f: Callable[..., np.ndarray], *states: Sample) -> Sample:
    """Applies `f` to arrays of equal key."""
    if isinstance(states[0], dict):
        return {key: f(*(state[key] for state in states)) for key in states[0]}
    return f(*states)


def _axpy(a: np.floating, v: Sample, x: Sample) -> Sample:
    """x + a * v in the dtype of x; a float64 time step must not widen a float32 state."""
    return _map(lambda v, x: x + x.dtype.type(a) * v, v, x)


def _checked_state(x0: Sample) -> Sample:
    """The state as plain arrays, or ValueError. A dict is copied, its arrays are not."""
    if isinstance(x0, Mapping):
        if not x0:
            raise ValueError("x0: expected at least one array, given an empty dict")
        return {key: _checked_array(f"x0[{key!r}]", x) for key, x in x0.items()}
    return _checked_array("x0", x0)


def _checked_array(name: str, x: np.ndarray) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.dtype not in (np.float32, np.float64):
        given = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise ValueError(f"{name}: expected a float32 or float64 array, given {given}")
    check_finite(name, x)
    return x


def _checked_velocity(v: Sample, x: Sample, time: np.float32) -> Sample:
    """The velocity if it has the form of `x` and is finite, or ValueError."""
    if isinstance(x, dict):
        if not isinstance(v, Mapping) or v.keys() != x.keys():
            given = sorted(v) if isinstance(v, Mapping) else type(v).__name__
            raise ValueError(f"velocity: expected a dict with keys {sorted(x)}, given {given}")
        pairs = [(f"velocity[{key!r}]", v[key], x[key]) for key in x]
    else:
        pairs = [("velocity", v, x)]
    for name, v_, x_ in pairs:
        if not isinstance(v_, np.ndarray) or v_.shape != x_.shape or v_.dtype != x_.dtype:
            given = f"{v_.dtype} {list(v_.shape)}" if isinstance(v_, np.ndarray) else type(v_).__name__
            raise ValueError(f"{name}: expected {x_.dtype} {list(x_.shape)} as the state, given {given}")
        if not np.isfinite(v_).all():
            bad = np.count_nonzero(~np.isfinite(v_))
            raise ValueError(f"{name}: expected finite values, given {bad} of {v_.size} that are not, at time {time:g}")
    return dict(v) if isinstance(x, dict) else v


def _count(name: str, value: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{name}: expected an integer of at least 1, given {value!r}")


def _is_finite(value: float) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _finite(name: str, value: float) -> None:
    if not _is_finite(value):
        raise ValueError(f"{name}: expected a finite number, given {value!r}")


def _positive(name: str, value: float) -> None:
    _finite(name, value)
    if value <= 0:
        raise ValueError(f"{name}: expected a number above 0, given {value!r}")
