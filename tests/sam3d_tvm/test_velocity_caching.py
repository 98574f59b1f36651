"""Forecast velocities on fields that are known exactly, by every solver; what is evaluated, and how often."""

import json
from dataclasses import replace

import numpy as np
import pytest

from sam3d_tvm.config import preset
from sam3d_tvm.multi_view import Views
from sam3d_tvm.quality import QUALITIES, Quality, plan
from sam3d_tvm.sampler import SOLVERS, Evaluations, Guidance, flow_schedule, sample_flow, sample_shortcut
from sam3d_tvm.velocity_caching import CACHES, ErrorBounded, GuidanceReuse, Hermite, Linear, Saving, cache_named
from sam3d_tvm.velocity_caching.forecasts import Forecasts, hermite, linear
from tests.sam3d_tvm.tiny import normal

# Of 25 steps, those that are evaluated as published: the first two, the last and every third.
PUBLISHED = [0, 1, 3, 6, 9, 12, 15, 18, 21, 24]
UNEVEN = np.array([0.0, 0.02, 0.1, 0.13, 0.3])
EPSILON = np.finfo(np.float64).eps


class Model:
    """A velocity that depends on the time alone, by `of(t)`, and a note of the times at which it was asked for."""

    def __init__(self, of):
        self.of, self.times = of, []

    def __call__(self, x, time, conditional=True):
        self.times.append(float(time))
        return self.of(float(time)) if isinstance(x, dict) else np.full_like(x, self.of(float(time)))


def steps_evaluated(model: Model, steps: int, rescale_t: float = 1.0) -> list[int]:
    times = flow_schedule(steps, rescale_t) * np.float32(1.0)
    return [int(np.flatnonzero(times == np.float32(t))[0]) for t in model.times]


def polynomial(*coefficients: float):
    return lambda t: np.polynomial.Polynomial(coefficients)(t)


@pytest.mark.parametrize("rescale_t", [1.0, 3.0, 0.4])
@pytest.mark.parametrize("slope", [-3.0, 2.0])
@pytest.mark.parametrize("solver", SOLVERS)
def test_linear_velocities_are_extrapolated_exactly(solver, slope, rescale_t):
    """A wrong sign, or steps taken for even ones, would be off by the size of the slope."""
    of = polynomial(1.0, slope)
    options = {"rescale_t": rescale_t, "solver": solver, "time_scale": 1.0}
    exact = sample_flow(Model(of), np.zeros(3), 25, **options)
    model, evaluations = Model(of), Saving(Linear()).begin()
    found = sample_flow(model, np.zeros(3), 25, **options, evaluations=evaluations)
    # Errors of the differences of velocities over float32 steps, times how far these are extrapolated.
    np.testing.assert_allclose(found, exact, atol=1e4 * EPSILON, rtol=0)
    calls = {"euler": 1, "midpoint": 2, "rk4": 4}[solver]
    assert evaluations.counts() == {"conditional": 10 * calls, "unconditional": 0, "forecast": 15 * calls}
    assert evaluations.steps == 10 and len(model.times) == 10 * calls


@pytest.mark.parametrize("weigh", [linear, hermite(1), hermite(2), hermite(3)])
def test_what_stands_still_is_forecast_to_stay(weigh):
    forecasts = Forecasts(weigh, 5)
    for t in UNEVEN:
        forecasts.learn(t, np.full(2, 7.0, np.float32))
    assert forecasts.at(0.7).tolist() == [7.0, 7.0] and forecasts.at(0.7).dtype == np.float32


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("further", [0, 1])
def test_polynomials_are_forecast_exactly_up_to_their_order(order, further):
    """At uneven times, from as many velocities as a polynomial needs and from more; one degree higher is not exact."""
    of = polynomial(*normal(order, order + 1).astype(np.float64))
    times = UNEVEN[-(order + 1 + further) :] if order + 1 + further <= len(UNEVEN) else UNEVEN
    weights = hermite(order)(times, 0.41)
    # The weights are those of an extrapolation, whose sum of sizes says how it magnifies rounding.
    bound = 100 * EPSILON * np.abs(weights).sum() * np.abs(of(times)).max()
    assert abs(weights @ of(times) - of(0.41)) < bound
    higher = polynomial(*[0.0] * (order + 1), 1.0)
    if len(times) == order + 1:
        missed = higher(0.41) - weights @ higher(times)
        assert missed == pytest.approx(np.prod(0.41 - times), rel=1e-6)  # the remainder of the interpolation


def test_a_polynomial_of_few_velocities_has_a_low_degree():
    assert hermite(3)(UNEVEN[:1], 0.5).tolist() == [1.0]
    np.testing.assert_allclose(hermite(3)(UNEVEN[:2], 0.5), linear(UNEVEN[:2], 0.5), rtol=1e-12)


def test_near_velocities_weigh_most_in_a_fit():
    """Of the four behind a line the last two are missed by less than the first two."""
    times = np.arange(4.0)
    velocities = np.array([0.0, 1.0, 0.0, 1.0])
    fit = [hermite(1)(times, t) @ velocities for t in times]
    assert abs(fit[3] - 1.0) < abs(fit[0] - 0.0)


@pytest.mark.parametrize("cache", [Hermite(order=2), Hermite(order=2, interval=4, warm_up=3)])
def test_hermite_follows_a_square(cache):
    of = polynomial(0.5, -2.0, 3.0)
    options = {"rescale_t": 3.0, "time_scale": 1.0}
    exact = sample_flow(Model(of), np.zeros(1), 30, **options)
    found, line = (
        sample_flow(Model(of), np.zeros(1), 30, **options, evaluations=Saving(saving).begin())
        for saving in (replace(cache, warm_up=3), Linear(interval=cache.interval, warm_up=3))
    )
    np.testing.assert_allclose(found, exact, atol=1e-8)  # pinv of times as near as 1 / 90, to the power of 2
    assert abs(line - exact).max() > 1e-4


def test_the_layout_is_smoothed_and_the_shape_extrapolated():
    """By hand, with momentum 0.5 on the line 1 + 10 t: each forecast is halfway between the one before and the line."""
    forecasts = Forecasts(linear, 2, 0.5)
    for t in (0.1, 0.3):
        forecasts.learn(t, {"shape": np.array([1 + 10 * t]), "scale": np.array([1 + 10 * t])})
    first, second = forecasts.at(0.4), forecasts.at(0.6)
    assert first["shape"][0] == pytest.approx(5.0) and second["shape"][0] == pytest.approx(7.0)
    assert first["scale"][0] == pytest.approx((4.0 + 5.0) / 2) and second["scale"][0] == pytest.approx((4.5 + 7.0) / 2)
    forecasts.learn(0.7, {"shape": np.array([8.0]), "scale": np.array([8.0])})  # begins anew at what is evaluated
    assert forecasts.at(0.8)["scale"][0] == pytest.approx((8.0 + 9.0) / 2)


def test_states_of_several_arrays_keep_their_form():
    x0 = {"shape": normal(0, 1, 4, 2), "scale": normal(1, 1, 1, 3).astype(np.float64)}
    model = Model(lambda t: {"shape": np.full((1, 4, 2), t, np.float32), "scale": np.full((1, 1, 3), t)})
    evaluations = Saving(Linear()).begin()
    found = sample_shortcut(
        lambda x, time, d, conditional: model(x, time), x0, 25, no_shortcut=True, rescale_t=3.0, evaluations=evaluations
    )
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        "shape": ((1, 4, 2), np.float32),
        "scale": ((1, 1, 3), np.float64),
    }
    assert evaluations.conditional == 10


@pytest.mark.parametrize(
    ("cache", "steps", "evaluated"),
    [
        (Linear(), 25, PUBLISHED),
        (Linear(), 4, [0, 1, 3]),
        (Linear(), 3, [0, 1, 2]),
        (Linear(interval=5, warm_up=3), 12, [0, 1, 2, 5, 10, 11]),
        (Hermite(order=1), 8, [0, 1, 3, 6, 7]),
        (ErrorBounded(), 3, [0, 1, 2]),
        (ErrorBounded(bound=1e9), 9, [0, 1, 2]),
        (ErrorBounded(bound=1e9, warm_up=5), 9, [0, 1, 2, 3, 4]),
    ],
)
def test_which_steps_are_evaluated(cache, steps, evaluated):
    model = Model(polynomial(1.0, 1.0))
    sample_flow(model, np.zeros(2), steps, time_scale=1.0, evaluations=Saving(cache).begin())
    assert steps_evaluated(model, steps) == evaluated
    assert cache.skips(steps) == (len(evaluated) < steps)


def error_by_hand(bound: float, steps: int) -> list[int]:
    """The steps that are evaluated of v(t) = 1 + 4 t, where |dx| and |dv| are differences of numbers."""
    x, found, error, before, rate, v = 0.0, [], 0.0, None, 0.0, None
    times = flow_schedule(steps, dtype=np.float64)
    known = None
    for step in range(steps):
        if step >= 3:
            error += rate * abs(x - before)
        if step < 3 or error >= bound:
            v, error = 1 + 4 * times[step], 0.0
            found.append(step)
            if known is not None:
                rate = abs(v - known[1]) / abs(x - known[0]) / abs(v)
            known = x, v
        before = x
        x += (times[step + 1] - times[step]) * v
    return found


@pytest.mark.parametrize("bound", [0.051, 0.22, 0.43, 1.55])  # no sum of errors comes to one of these
def test_steps_are_skipped_while_the_estimated_error_stays_below_the_bound(bound):
    model = Model(polynomial(1.0, 4.0))
    sample_shortcut(
        lambda x, t, d, c: model(x, t), np.zeros(1), 20, time_scale=1.0, evaluations=Saving(ErrorBounded(bound=bound)).begin()
    )
    found = [round(t * 20) for t in model.times]
    assert found == error_by_hand(bound, 20)
    assert len(found) == {0.051: 18, 0.22: 9, 0.43: 6, 1.55: 4}[bound]


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize(
    "saving",
    [
        Saving(),
        Saving(ErrorBounded(bound=0.0)),
        Saving(None, GuidanceReuse(share=0.0)),
        Saving(Linear(interval=2, warm_up=12)),
    ],
)
def test_where_every_velocity_is_evaluated_the_bytes_are_the_same(solver, saving):
    x0 = normal(3, 20, 8)

    def velocity(x, time, conditional):
        return np.sin(x) if conditional else np.cos(x)

    def run(**options):
        return sample_flow(velocity, x0, 12, guidance=Guidance(3.0), solver=solver, **options)

    evaluations = saving.begin()
    assert run(evaluations=evaluations).tobytes() == run().tobytes()
    assert evaluations.forecast == 0 and evaluations.steps == 12
    counted = Evaluations()
    run(evaluations=counted)
    assert evaluations.counts() == counted.counts()


def test_states_at_rest_are_no_trouble():
    """No change of state, or no velocity at all: nothing is divided by 0, which pytest would report."""
    for of in (polynomial(0.0), lambda t: 0.0 if t < 0.3 else 1.0):
        evaluations = Saving(ErrorBounded()).begin()
        found = sample_flow(Model(of), np.ones((2, 3), np.float32), 10, time_scale=1.0, evaluations=evaluations)
        assert np.isfinite(found).all()
    empty = np.zeros((0, 8), np.float32)
    assert sample_flow(lambda x, t, c: x, empty, 10, evaluations=Saving(ErrorBounded()).begin()).shape == (0, 8)


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        (GuidanceReuse(share=1.0, longest=1), [True, False, True, False, True, False]),
        (GuidanceReuse(share=1.0, longest=4), [True, False, False, False, False, True]),
        (GuidanceReuse(share=0.4, longest=4), [True] * 6),  # guidance has half of the velocity: 2 * |4 - 3| / 4
        (GuidanceReuse(share=0.6, longest=4), [True, False, False, False, False, True]),
    ],
)
def test_guidance_that_changes_little_is_used_again(settings, asked):
    """Both velocities are constant, so that the difference used again is the true one. Models are told beforehand."""
    told = []
    evaluations = Saving(None, settings).begin()

    def velocity(x, time, conditional):
        if conditional:
            told.append(evaluations.with_unconditional)
        return np.full_like(x, 4.0 if conditional else 3.0)

    options = {"guidance": Guidance(2.0, (0, 500))}
    found = sample_flow(velocity, np.zeros(2), 11, **options, evaluations=evaluations)
    np.testing.assert_allclose(found, sample_flow(velocity, np.zeros(2), 11, **options), rtol=1e-12)
    assert told[:11] == asked + [False] * 5
    assert evaluations.counts() == {"conditional": 11, "unconditional": sum(asked), "forecast": 0}


def test_a_forecast_stands_for_the_guided_velocity():
    """Linear in time with the condition and without: the guided one is linear, too."""

    def velocity(x, time, conditional):
        t = float(time) / 1000
        return np.full_like(x, 1 + 2 * t if conditional else -t)

    options = {"guidance": Guidance(7.0, (0, 1000)), "rescale_t": 3.0}
    evaluations = Saving(Linear()).begin()
    found = sample_flow(velocity, np.zeros(2), 25, **options, evaluations=evaluations)
    # Times that the model sees are rounded to float32, and extrapolated by up to twice the steps, of a slope of 23.
    np.testing.assert_allclose(found, sample_flow(velocity, np.zeros(2), 25, **options), rtol=1e-4)
    assert evaluations.counts() == {"conditional": 10, "unconditional": 10, "forecast": 15}


def test_photos_have_their_turns_in_steps_that_are_evaluated():
    """Or with a turn of three photos and every third step one of them would be all that counts."""
    views, turns, evaluations = Views(3, "cycle"), [], Saving(Linear()).begin()

    def velocity(x, time, conditional):
        turns.extend(views.counting)
        return x

    sample_flow(velocity, np.ones(1), 25, evaluations=evaluations, on_step=views.after_step(None, evaluations))
    assert turns == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]


def test_evaluations_are_of_one_run():
    evaluations = Evaluations()
    sample_flow(lambda x, t, c: x, np.ones(1), 2, evaluations=evaluations)
    with pytest.raises(ValueError, match="evaluations: expected those of no other run, given 2 that were made"):
        sample_flow(lambda x, t, c: x, np.ones(1), 2, evaluations=evaluations)
    with pytest.raises(ValueError, match="evaluations: expected an Evaluations or None, given Saving"):
        sample_flow(lambda x, t, c: x, np.ones(1), 2, evaluations=Saving())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Linear(interval=1), "interval: expected an integer of at least 2, given 1"),
        (lambda: Linear(warm_up=1), "warm_up: expected an integer of at least 2, given 1"),
        (lambda: Linear(momentum=1.5), "momentum: expected a number of at least 0 and at most 1, given 1.5"),
        (lambda: Hermite(order=0), "order: expected an integer of at least 1, given 0"),
        (lambda: Hermite(interval=2.5), "interval: expected an integer of at least 2, given 2.5"),
        (lambda: ErrorBounded(bound=-1), "bound: expected a number of at least 0, given -1"),
        (lambda: ErrorBounded(bound=float("nan")), "bound: expected a number of at least 0, given nan"),
        (lambda: ErrorBounded(warm_up=1), "warm_up: expected an integer of at least 2, given 1"),
        (lambda: GuidanceReuse(share="much"), "share: expected a number of at least 0, given 'much'"),
        (lambda: GuidanceReuse(longest=0), "longest: expected an integer of at least 1, given 0"),
        (lambda: cache_named("latents_cache", "cubic"), "latents_cache: expected one of 'none', 'linear', 'hermite', 'error'"),
    ],
)
def test_settings_that_make_no_sense(make, message):
    with pytest.raises(ValueError, match=message):
        make()


FULL = preset("full")


def test_by_default_everything_is_evaluated():
    """As docs/figures.md counts it for 25 + 25 steps: 19 and 13 of them guided."""
    found = plan(FULL)
    assert found == plan(FULL, "exact") == plan(FULL, Quality())
    assert found.at_most() == {"structure": 25 + 19, "latents": 25 + 13}
    assert found.structure.saving == found.latents.saving == Saving() and not found.structure.shortcut
    assert found.structure.saving.to_json("", "structure_cache") == {}


@pytest.mark.parametrize("name", QUALITIES)
def test_qualities_take_ever_fewer_evaluations(name):
    assert list(QUALITIES) == ["exact", "normal", "draft"]
    counts = {quality: sum(plan(FULL, quality).at_most().values()) for quality in QUALITIES}
    assert counts["exact"] == 82 and counts["normal"] <= 0.4 * 82 and counts["draft"] <= 0.15 * 82
    stages = plan(FULL, name).structure, plan(FULL, name).latents
    assert all(stage.is_known for stage in stages)  # or `benchmarks.pipeline` could not tell how long they take


def test_options_win_over_a_quality():
    found = plan(FULL, "draft", steps=2, latents_cache="hermite", slat_steps=9, slat_guidance=3.0)
    assert found.structure.sampling.steps == 2 and found.structure.shortcut
    assert found.latents.sampling.steps == 9 and found.latents.sampling.strength == 3.0
    assert found.latents.saving.cache == Hermite()
    assert plan(FULL, shortcut=True).structure.sampling.steps == 4 and plan(FULL, shortcut=True).latents.sampling.steps == 25
    assert plan(FULL, shortcut=True, steps=3).latents.sampling.steps == 3
    assert plan(FULL, "normal", shortcut=True).structure.saving.cache is None
    assert plan(FULL, "normal", structure_cache="none").structure.saving.cache is None
    own = plan(FULL, Quality(structure_cache=Linear(interval=5), reuse_guidance=GuidanceReuse()))
    assert own.structure.saving == Saving(Linear(interval=5), GuidanceReuse()) and own.latents.saving.cache is None
    assert plan(FULL, reuse_guidance=True).latents.saving.guidance == GuidanceReuse()


def test_what_only_a_run_can_tell_is_counted_as_evaluated():
    found = plan(FULL, latents_cache="error", reuse_guidance=True)
    assert not found.latents.is_known and not found.structure.is_known
    assert found.at_most() == {"structure": 44, "latents": 38}


@pytest.mark.parametrize("name", CACHES)
def test_what_is_saved_is_json(name):
    saving = plan(FULL, structure_cache=name, reuse_guidance=True).structure.saving
    value = json.loads(json.dumps(saving.to_json("slat_", "structure_cache")))
    assert value.pop("slat_reuse_guidance") == {"share": 0.2, "longest": 2}
    assert value.get("structure_cache", {"kind": "none"})["kind"] == name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quality": "best"}, "quality: expected one of 'exact', 'normal', 'draft', given 'best'"),
        ({"structure_cache": "cubic"}, "structure_cache: expected one of 'none', 'linear', 'hermite', 'error', given 'cubic'"),
        ({"structure_cache": "linear", "steps": 3}, "structure_cache: expected at least 4 steps, as fewer are all evaluated"),
        ({"latents_cache": "error", "slat_steps": 3}, "latents_cache: expected at least 4 steps, .*, given 3"),
        ({"quality": "normal", "steps": 2}, "structure_cache: expected at least 4 steps, .*, given 2"),
        (
            {"shortcut": True, "structure_cache": "linear"},
            "structure_cache: expected none with shortcut of fewer than 8 steps, given 4 and Linear",
        ),
        ({"reuse_guidance": 3}, "reuse_guidance: expected a GuidanceReuse, True or False, given 3"),
        ({"guidance": float("nan")}, "guidance: expected a finite number, given nan"),
    ],
)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        plan(FULL, **options)
