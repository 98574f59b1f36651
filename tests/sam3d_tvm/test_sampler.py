"""The samplers against recorded runs, against exact solutions, and with bad input."""

import numpy as np
import pytest

from sam3d_tvm.sampler import SOLVERS, Guidance, flow_schedule, sample_flow, sample_shortcut
from tests import DATA
from tests.golden import case_sampler
from tests.golden.runner import read
from tests.tolerance import assert_close

ONES = np.ones((2, 3), np.float32)


@pytest.fixture(scope="module")
def golden():
    """(tensors, config, what the case computes) of the recorded runs."""
    tensors, config = read(DATA / "golden" / "sampler.safetensors")
    return tensors, config, case_sampler.run(tensors, config)


def test_times_and_guided_steps_equal_the_recorded_ones_bit_for_bit(golden):
    tensors, config, computed = golden
    assert len(config["cases"]) == 11
    for case in config["cases"]:
        for key in ("t_seq", "t_passed", "guided", "d", "d_passed"):
            name = f"out.{case['name']}.{key}"
            if name in tensors:
                assert computed[name].dtype == tensors[name].dtype, name
                np.testing.assert_array_equal(computed[name], tensors[name], name)


def test_states_after_every_step(golden):
    tensors, config, computed = golden
    names = [name for name in tensors if ".x" in name and name.startswith("out.")]
    assert len(names) == 7 + 4 * 3
    for name in names:
        assert computed[name].dtype == np.float32
        assert_close(computed[name], tensors[name], case_sampler.depth(name, tensors, config), name=name)


@pytest.mark.parametrize("rescale_t", [1, 3, 2.5, 0.3])
def test_float32_schedule_is_torch_s(rescale_t):
    torch = pytest.importorskip("torch")
    for steps in [*range(1, 66), 100, 250, 999, 1000]:
        t = torch.linspace(0, 1, steps + 1)
        np.testing.assert_array_equal(flow_schedule(steps, rescale_t), (t / (1 + (rescale_t - 1) * (1 - t))).numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_schedule_runs_from_0_to_1_and_ascends(dtype):
    for steps in (1, 2, 7, 25):
        for rescale_t in (0.5, 1, 3):
            t = flow_schedule(steps, rescale_t, dtype)
            assert t.shape == (steps + 1,) and t.dtype == dtype and t[0] == 0 and t[-1] == 1 and (np.diff(t) > 0).all()
    assert flow_schedule(2, 3)[1] == 0.25  # smaller times are denser


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_solvers_converge_by_their_order(solver, order):
    """dx/dt = x + t from x = 1 ends at 2 e - 2; doubling the steps divides the error by 2^order."""

    def error(steps):
        x = sample_shortcut(lambda x, t, d, _: x + t, np.ones(1), steps, solver=solver, time_scale=1)
        return abs(x[0] - (2 * np.e - 2))

    assert error(8) / error(16) == pytest.approx(2**order, rel=0.25)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_constant_velocity_is_integrated_exactly(solver):
    x = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4)}
    v = {"a": np.full((2, 3), 2, np.float32), "b": np.full(4, -1.0)}
    result = sample_flow(lambda x, t, c: v, x, 7, rescale_t=3, solver=solver)
    assert result["a"].dtype == np.float32 and result["b"].dtype == np.float64
    assert_close(result["a"], np.full((2, 3), 2, np.float32), depth=7)
    assert_close(result["b"], np.zeros(4), depth=7, dtype=np.float32)  # the times are float32
    assert (x["a"] == 0).all() and (x["b"] == 1).all()  # the start is left as it was


def test_both_ends_of_the_interval_are_guided_and_nothing_beyond():
    seen = []

    def velocity(x, time, conditional):
        seen.append((float(time), conditional))
        return np.full_like(x, 3 if conditional else 1)

    x = sample_flow(velocity, np.zeros((1,), np.float32), 4, guidance=Guidance(2.0, (250, 500)))
    assert seen == [(0, True), (250, True), (250, False), (500, True), (500, False), (750, True)]
    assert x[0] == (3 + 7 + 7 + 3) / 4  # (1 + 2) * 3 - 2 * 1 = 7 where guided


def test_the_interval_is_compared_in_float32():
    guidance = Guidance(1.0, (0, 0.1))  # float32(0.1) lies above 0.1
    assert guidance.applies(np.float32(0.1))
    assert not guidance.applies(np.nextafter(np.float32(0.1), np.float32(1)))


@pytest.mark.parametrize("guidance", [None, Guidance(0.0), Guidance(7.0, None), Guidance(7.0, (2000, 3000))])
def test_without_guidance_the_model_is_called_once_a_step(guidance):
    calls = []
    sample_flow(lambda x, t, conditional: calls.append(conditional) or x, ONES, 5, guidance=guidance)
    assert calls == [True] * 5


def test_shortcut_passes_the_length_of_a_step():
    seen = []
    sample_shortcut(lambda x, t, d, c: seen.append((t, d)) or x, ONES, 4, rescale_t=3)
    assert [float(t) for t, _ in seen] == [0, 100, 250, 500] and {float(d) for _, d in seen} == {250.0}
    assert all(t.dtype == d.dtype == np.float32 for t, d in seen)
    seen.clear()
    sample_shortcut(lambda x, t, d, c: seen.append(d) or x, ONES, 4, no_shortcut=True)
    assert seen == [0, 0, 0, 0]


def test_on_step_sees_every_state():
    steps = []
    x = sample_flow(lambda x, t, c: x, ONES, 3, rescale_t=2, on_step=steps.append)
    assert [(s.index, s.steps) for s in steps] == [(0, 3), (1, 3), (2, 3)]
    assert steps[0].start == 0 and steps[-1].stop == 1 and steps[0].stop == steps[1].start
    np.testing.assert_array_equal(steps[-1].x, x)


def test_no_voxels_are_no_trouble():
    empty = np.zeros((1, 0, 8), np.float32)
    assert sample_flow(lambda x, t, c: x, empty, 2).shape == (1, 0, 8)


def test_same_bits_on_every_run():
    x0 = np.random.default_rng(0).standard_normal((50, 8), dtype=np.float32)
    first, second = (sample_flow(lambda x, t, c: np.sin(x), x0, 12, guidance=Guidance(3.0), solver="rk4") for _ in range(2))
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("sample", [sample_flow, sample_shortcut])
@pytest.mark.parametrize(
    ("kwargs", "says"),
    [
        ({"steps": 0}, "steps: expected an integer of at least 1, given 0"),
        ({"steps": -3}, "steps: .* given -3"),
        ({"steps": 2.0}, "steps: .* given 2.0"),
        ({"steps": True}, "steps: .* given True"),
        ({"rescale_t": 0}, "rescale_t: expected a number above 0, given 0"),
        ({"rescale_t": np.nan}, "rescale_t: expected a finite number, given nan"),
        ({"time_scale": -1.0}, "time_scale: expected a number above 0"),
        ({"time_scale": np.inf}, "time_scale: expected a finite number"),
        ({"solver": "heun"}, "solver: expected one of euler, midpoint, rk4, given 'heun'"),
        ({"guidance": 3.0}, "guidance: expected a Guidance or None, given float"),
        ({"x0": [1.0]}, "x0: expected a float32 or float64 array, given list"),
        ({"x0": np.ones(3, np.int32)}, "x0: expected a float32 or float64 array, given int32"),
        ({"x0": np.array([1, np.nan, np.inf])}, "x0: expected finite values, given 2 that are not"),
        ({"x0": {}}, "x0: expected at least one array"),
        ({"x0": {"a": np.array([np.nan])}}, r"x0\['a'\]: expected finite values"),
    ],
)
def test_bad_arguments(sample, kwargs, says):
    with pytest.raises(ValueError, match=says):
        sample(lambda x, *_: x, **{"x0": ONES, "steps": 2, **kwargs})


@pytest.mark.parametrize(
    ("velocity", "x0", "says"),
    [
        (lambda x: x[:1], ONES, r"velocity: expected float32 \[2, 3\] as the state, given float32 \[1, 3\]"),
        (lambda x: x.astype(np.float64), ONES, r"velocity: expected float32 \[2, 3\] as the state, given float64"),
        (lambda x: None, ONES, "velocity: .* given NoneType"),
        (lambda x: x * np.nan, ONES, "velocity: expected finite values, given 6 of 6 that are not, at time 0"),
        (lambda x: x["a"], {"a": ONES}, r"velocity: expected a dict with keys \['a'\], given ndarray"),
        (lambda x: x | {"b": ONES}, {"a": ONES}, r"velocity: expected a dict with keys \['a'\], given \['a', 'b'\]"),
        (lambda x: {"a": x["a"].T}, {"a": ONES}, r"velocity\['a'\]: expected float32 \[2, 3\]"),
    ],
)
def test_bad_velocities(velocity, x0, says):
    with pytest.raises(ValueError, match=says):
        sample_flow(lambda x, t, c: velocity(x), x0, 3)


@pytest.mark.parametrize("interval", [(500, 0), (0,), (0, 1, 2), (np.nan, 1), (0, np.inf), 5, "12", (None, 1), (False, True)])
def test_bad_intervals(interval):
    with pytest.raises(ValueError, match="interval: expected None or finite numbers"):
        Guidance(1.0, interval)


@pytest.mark.parametrize("strength", [np.nan, np.inf, None, "2"])
def test_bad_strengths(strength):
    with pytest.raises(ValueError, match="strength: expected a finite number"):
        Guidance(strength)


def test_bad_schedule_dtype():
    with pytest.raises(ValueError, match="dtype: expected float32 or float64, given float16"):
        flow_schedule(4, dtype=np.float16)
