"""Threshold, pruning and coarser grids against plain definitions, at their limits, and with bad input.

The golden case `prune_downsample` compares them with upstream's results.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sam3d_tvm.models.structure_decoder.voxels import downsample, occupied_coords, prune
from tests.sparse_ops.strategies import coordinates

NONE = np.zeros((0, 4), np.int32)


def box(*extent: int, batch: int = 0, low: int = 0) -> np.ndarray:
    """All voxels of a box, int32 [N, 4], ascending."""
    cells = np.indices((1, *extent)).reshape(4, -1).T + np.array([batch, low, low, low])
    return np.ascontiguousarray(cells, np.int32)


def rows(coords: np.ndarray) -> list[tuple[int, ...]]:
    return list(map(tuple, coords.tolist()))


def test_occupied_coords():
    logits = np.full((2, 1, 2, 3, 4), -1, np.float32)
    occupied = [(0, 0, 0, 3), (0, 1, 2, 0), (1, 0, 1, 1), (1, 1, 0, 0)]
    for batch, *cell in occupied:
        logits[(batch, 0, *cell)] = 0.25
    logits[0, 0, 1, 1, 1] = 0  # not above the threshold
    found = occupied_coords(logits)
    assert found.dtype == np.int32 and found.flags.c_contiguous and rows(found) == occupied
    assert len(occupied_coords(logits, 0.25)) == 0 and len(occupied_coords(logits, -2)) == logits.size
    assert occupied_coords(np.zeros((0, 1, 4, 4, 4), np.float32)).shape == (0, 4)


@given(coordinates(low=0, high=4), st.integers(1, 3))
def test_prune_looks_at_the_whole_box(coords, distance):
    found, steps = set(rows(coords)), np.indices([2 * distance + 1] * 3).reshape(3, -1).T - distance
    expected = [row for row in rows(coords) if any((row[0], *(step + row[1:])) not in found for step in steps)]
    assert rows(prune(coords, distance)) == expected


@pytest.mark.parametrize(("distance", "left"), [(1, 27), (2, 1), (3, 0), (100, 0)])
def test_prune_leaves_the_shell(distance, left):
    """Of a box of 5^3; an element beside it, at the other end of the axis, is none of its neighbours."""
    solid = box(5, 5, 5)
    assert len(prune(solid, distance)) == 125 - left
    far = np.concatenate([solid, box(5, 5, 5, batch=1, low=5), box(1, 1, 1, low=-32768), box(1, 1, 1, batch=4095, low=32767)])
    assert len(prune(far, distance)) == 2 * (125 - left) + 2


def test_elements_do_not_touch():
    """Two halves of a full box in two elements: every voxel lies at a border."""
    halves = np.concatenate([box(2, 4, 4), box(2, 4, 4, batch=1) + np.array([0, 2, 0, 0], np.int32)])
    assert rows(prune(halves)) == rows(halves)
    halves[:, 0] = 0
    assert len(prune(halves)) == 64 - 8


@given(coordinates(), st.integers(1, 30), st.integers(2, 3))
def test_downsample_treats_elements_by_themselves(coords, max_voxels, factor):
    found, factors = downsample(coords, max_voxels, factor)
    assert found.dtype == np.int32 and factors.dtype == np.int64
    assert len(factors) == max(1, coords[:, 0].max(initial=0) + 1)
    for batch in range(len(factors)):
        element = coords[coords[:, 0] == batch]
        alone, one = downsample(element * np.int32([0, 1, 1, 1]), max_voxels, factor)
        mine = found[found[:, 0] == batch]
        assert (mine[:, 1:] == alone[:, 1:]).all() and one == [factors[batch]]
        assert factors[batch] == (factor if len(element) > max_voxels else 1)
        if factors[batch] == 1:
            assert rows(mine) == rows(element)
        else:
            assert len(mine) <= max_voxels and rows(mine) == sorted(set(rows(mine)))
            extent, low = np.ptp(element, axis=0), element.min(0)
            assert (mine >= low).all() and (np.ptp(mine, axis=0) <= -(-(extent + 1) // factor)).all()


def test_downsample_halves_the_extent_around_its_middle():
    coords, factors = downsample(box(64, 64, 64, low=8), 42000)
    assert rows(coords) == rows(box(32, 32, 32, low=24)) and factors.tolist() == [2]
    # Ends at 2.5 and 6.5: rounded to even, and not beyond the truncated end; of six, at 1.5 and 3.5.
    line = np.int32([[0, x, 7, 3] for x in range(10)])
    assert downsample(line, 9)[0].tolist() == [[0, x, 7, 3] for x in (2, 3, 4, 5, 6)]
    assert downsample(line[:6], 5)[0].tolist() == [[0, x, 7, 3] for x in (2, 3)]


def test_what_fits_is_left_as_it_is():
    coords = box(3, 3, 3)[::-1].copy()
    assert rows(downsample(coords, 27)[0]) == rows(coords)
    mixed = np.concatenate([box(3, 3, 3, batch=2), coords, box(1, 1, 1, batch=4)])
    found, factors = downsample(mixed, 26, batch_size=7)
    assert factors.tolist() == [2, 1, 2, 1, 1, 1, 1] and found[:, 0].tolist() == sorted(found[:, 0])
    assert rows(found)[-1] == (4, 0, 0, 0)


def test_too_many_even_so():
    """The same choice on every run, another one for another seed; ascending, without a voxel twice."""
    whole, _ = downsample(box(16, 16, 16), 512)
    assert len(whole) == 512
    found, factors = downsample(box(16, 16, 16), 100)
    assert len(found) == 100 and factors.tolist() == [2]
    assert rows(found) == sorted(set(rows(found))) and set(rows(found)) < set(rows(whole))
    assert rows(downsample(box(16, 16, 16), 100)[0]) == rows(found)
    assert rows(downsample(box(16, 16, 16), 100, seed=1)[0]) != rows(found)
    assert np.abs(found[:, 1:].mean(0) - 7.5).max() < 1  # from everywhere


def test_no_voxels():
    assert prune(NONE).shape == (0, 4)
    found, factors = downsample(NONE)
    assert found.shape == (0, 4) and found.dtype == np.int32 and factors.tolist() == [1]
    assert downsample(NONE, batch_size=3)[1].tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: occupied_coords(np.zeros((1, 2, 4, 4, 4), "float32")),
            r"logits: expected float32 \[any, 1, .*\[1, 2, 4, 4, 4\]",
        ),
        (lambda: occupied_coords(np.zeros((1, 1, 4, 4, 4))), r"logits: expected float32 .*given float64"),
        (lambda: occupied_coords(np.full((1, 1, 1, 1, 2), np.nan, "float32")), "logits: expected numbers, given 2 NaN of 2"),
        (lambda: occupied_coords(np.zeros((1, 1, 1, 1, 1), "float32"), np.nan), "threshold: expected a number, given nan"),
        (lambda: occupied_coords(np.zeros((1, 1, 1, 1, 1), "float32"), "0"), "threshold: expected a number, given '0'"),
        (lambda: prune(np.zeros((2, 3), "int32")), r"coords: expected int32 \[any, 4\], given int32 \[2, 3\]"),
        (lambda: prune(NONE.astype("int64")), r"coords: expected int32 .*given int64"),
        (lambda: prune([[0, 0, 0, 0]]), "coords: expected int32 .*neither a numpy array"),
        (
            lambda: prune(np.int32([[0, 1, 2, 3], [0, 1, 40000, 3]])),
            "coords: expected y from -32768 to 32767, given 40000 in row 1",
        ),
        (lambda: prune(np.int32([[-1, 1, 2, 3]])), "coords: expected batch from 0 to 4095, given -1 in row 0"),
        (lambda: prune(NONE, 0), "distance: expected an integer of at least 1, given 0"),
        (lambda: downsample(NONE, 0), "max_voxels: expected an integer of at least 1, given 0"),
        (lambda: downsample(NONE, factor=1), "factor: expected an integer of at least 2, given 1"),
        (lambda: downsample(NONE, seed=-1), "seed: expected an integer of at least 0, given -1"),
        (lambda: downsample(box(1, 1, 1, batch=2), batch_size=2), "batch_size: expected an integer of at least 3, given 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
