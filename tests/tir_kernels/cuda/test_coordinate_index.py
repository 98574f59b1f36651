"""The index of coordinates on a device, by both methods: what it finds, and what it refuses with which words."""

import numpy as np
import pytest

from tests.cuda_emulator import schedule
from tests.tir_kernels.cuda.on_device import run
from tir_kernels.coordinates import GRID_CELLS_MOST, GRID_CELLS_PER_ROW
from tir_kernels.spec.coordinate_index import (
    GRID,
    HASH,
    PLAN_METHOD,
    PLAN_ROWS,
    PLAN_SIZE,
    BuildIndex,
    Lookup,
    PlanIndex,
    naive,
)


def index_of(coords, method="auto", argument="coords"):
    """(plan, slots, keys)."""
    plan, size = run(PlanIndex(method, argument=argument), [coords], [((PLAN_SIZE,), "int64"), ((2,), "int64")])
    return [plan, *run(BuildIndex(argument), [coords, plan], [((size[0],), "int32"), ((size[1],), "int64")])]


def lookup(index, queries):
    (rows,) = run(Lookup(), [queries, *index], [((len(queries),), "int32")])
    return rows


def scattered(rows, reach, seed=0, batch=3):
    """Distinct coordinates [<= rows, 4], in any order."""
    rng = np.random.default_rng(seed)
    coords = np.concatenate([rng.integers(0, batch, (rows, 1)), rng.integers(-reach, reach, (rows, 3))], 1).astype("int32")
    return rng.permutation(np.unique(coords, axis=0))


def queries_around(coords, seed=0):
    """All rows, their neighbours, and what no key is formed of."""
    far = np.array([[0, 2**31 - 1, 0, 0], [-1, 0, 0, 0], [4096, 0, 0, 0], [0, -(2**31), 0, 0], [5, 0, 0, 32768]], "int32")
    moved = coords + np.random.default_rng(seed).integers(-1, 2, coords.shape).astype("int32")
    return np.concatenate([coords, moved, far])


@pytest.mark.parametrize("method", ["grid", "hash"])
@pytest.mark.parametrize("rows", [1, 255, 256, 257, 1500])
def test_rows_are_found(method, rows):
    coords = scattered(rows, 8)
    index = index_of(coords, method)
    assert index[0][PLAN_METHOD] == {"grid": GRID, "hash": HASH}[method] and index[0][PLAN_ROWS] == len(coords)
    queries = queries_around(coords)
    expected = naive(coords, queries)
    assert (expected >= 0).any() and (expected < 0).any()
    np.testing.assert_array_equal(lookup(index, queries), expected)
    with schedule(2):
        np.testing.assert_array_equal(lookup(index_of(coords, method), queries), expected)


@pytest.mark.parametrize("method", ["auto", "grid", "hash"])
def test_no_rows(method):
    none = np.zeros((0, 4), "int32")
    index = index_of(none, method)
    np.testing.assert_array_equal(lookup(index, np.array([[0, 0, 0, 0], [-1, 5, 5, 5]], "int32")), [-1, -1])
    assert len(lookup(index, none)) == 0


def test_flat_grids_and_lines():
    for axes in ((1, 2), (3,), ()):
        coords = np.zeros((9, 4), "int32") - 7
        coords[:, 0] = 2
        if axes:
            coords[:, list(axes)] = np.array(np.unravel_index(np.arange(9), (3, 3) if len(axes) == 2 else (9,))).T
        else:
            coords = coords[:1]
        queries = queries_around(coords)
        for method in ("grid", "hash"):
            np.testing.assert_array_equal(lookup(index_of(coords, method), queries), naive(coords, queries))


def test_the_largest_extents():
    corners = np.array(
        [[b, x, y, z] for b in (0, 4095) for x in (-32768, 32767) for y in (-32768, 32767) for z in (-32768, 32767)]
    )
    coords = np.concatenate([corners, [[0, 0, 0, 0]]]).astype("int32")
    index = index_of(coords)
    assert index[0][PLAN_METHOD] == HASH
    queries = queries_around(coords)
    np.testing.assert_array_equal(lookup(index, queries), naive(coords, queries))


def test_auto_takes_a_grid_while_it_has_few_cells_a_row():
    for z, method in ((60, GRID), (1 << 15, HASH)):
        coords = np.array([[0, 0, 0, 0], [0, 63, 15, 0], [0, 0, 0, z - 1]], "int32")
        assert index_of(coords)[0][PLAN_METHOD] == method
    assert GRID_CELLS_PER_ROW * 3 < 64 * 16 * 60  # some cells are always granted


@pytest.mark.parametrize("method", ["grid", "hash"])
def test_the_first_row_that_repeats_another(method):
    coords = scattered(700, 20, batch=1)
    coords[500], coords[311], coords[590] = coords[20], coords[250], coords[20]
    for seed in (1, 2, 3):
        words = "coords_out: row 311 repeats the coordinates of row 250, expected every row to be different"
        with schedule(seed), pytest.raises(ValueError, match=f"^{words}$"):
            index_of(coords, method, "coords_out")


def test_the_first_row_out_of_range_of_the_first_such_column():
    coords = scattered(700, 20)
    coords[400, 2], coords[300, 3], coords[500, 2] = 32768, -32769, -40000
    for method in ("auto", "grid", "hash"):
        with pytest.raises(ValueError, match=r"^coords: row 400 has y 32768, expected -32768 to 32767$"):
            index_of(coords, method)
    coords[599, 0] = 4096
    with pytest.raises(ValueError, match=r"^coords: row 599 has batch index 4096, expected 0 to 4095$"):
        index_of(coords)
    coords[7] = [-(2**31), 2**31 - 1, -(2**31), 2**31 - 1]
    with pytest.raises(ValueError, match=r"^coords: row 7 has batch index -2147483648, expected 0 to 4095$"):
        index_of(coords)


def test_a_grid_that_is_asked_for_and_too_large():
    coords = np.array([[0, -32768, 0, 0], [1, 32767, 99, 99]], "int32")
    with pytest.raises(ValueError, match=rf"box of 2 x 65536 x 100 x 100 cells .* at most {GRID_CELLS_MOST} cells"):
        index_of(coords, "grid")


@pytest.mark.parametrize("method", ["auto", "grid", "hash"])
def test_what_was_refused_stays_within_memory(method):
    """Later kernels of the same call run on coordinates that were refused."""
    coords = scattered(300, 9)
    coords[10], coords[20] = [-(2**31), 2**31 - 1, -(2**31), 2**31 - 1], [2**31 - 1, -(2**31), 2**31 - 1, -(2**31)]
    coords[30] = coords[31] = [-1, -1, -1, -1]  # whose key is that of a free bucket
    coords[40] = coords[41]
    plan, size = run(PlanIndex(method), [coords], [((PLAN_SIZE,), "int64"), ((2,), "int64")], read=False)
    index = run(BuildIndex(), [coords, plan], [((size[0],), "int32"), ((size[1],), "int64")], read=False)
    rows = lookup([plan, *index], coords)
    assert ((rows >= -1) & (rows < len(coords))).all()
