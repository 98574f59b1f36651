"""Several views of one object: their mean, and whose turn it is. What models make of them stands in their own tests."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam3d_tvm.multi_view import MOST_VIEWS, Views, mean
from sam3d_tvm.sampler import Step
from tests.sam3d_tvm.tiny import normal


def step(index):
    return Step(index, 9, 0.0, 0.1, np.zeros(1))


def test_one_velocity_is_the_mean_of_itself():
    array = normal(0, 5, 3)
    assert mean([array]) is array


@given(st.integers(2, 5), st.integers(0, 1000))
def test_the_mean_is_the_same_bits_in_any_order(count, seed):
    arrays = list(normal(seed, count, 4, 3) * np.float32(10.0) ** np.random.default_rng(seed).integers(-6, 6, (count, 1, 1)))
    arrays = [array.astype(np.float32) for array in arrays]
    found = mean(arrays)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.mean(np.float64(arrays), 0), rtol=1e-6, atol=1e-6 * np.abs(arrays).max())
    for order in permutations(arrays):
        assert mean(order).tobytes() == found.tobytes()


@pytest.mark.parametrize("count", range(2, MOST_VIEWS + 1))
def test_the_mean_of_equal_velocities_is_theirs(count):
    array = normal(1, 100, 3)
    assert mean([array.copy() for _ in range(count)]).tobytes() == array.tobytes()


def test_all_views_count_in_a_mean():
    views = Views(3)
    tell = views.after_step(None)
    for index in range(4):
        assert list(views.counting) == [0, 1, 2]
        tell(step(index))


def test_views_take_turns_over_steps():
    views, told, turns = Views(3, "cycle"), [], []
    tell = views.after_step(lambda step: told.append(step.index))
    for index in range(5):
        turns += [*views.counting, *views.counting]  # a solver may ask more than once in a step
        tell(step(index))
    assert turns == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1] and told == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0,), "views: expected an integer of at least 1, given 0"),
        ((9,), "views: expected at most 8, given 9"),
        ((2, "median"), "multi_view: expected one of 'mean', 'cycle', given 'median'"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Views(*arguments)
