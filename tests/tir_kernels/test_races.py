"""The kernels on coordinates have no data races: no two tasks of a parallel loop touch a cell that one of them writes."""

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from tests.tir_kernels.races import RaceError, run
from tir_kernels import script
from tir_kernels.cpu.coordinate_index import ROW_CHUNK
from tir_kernels.cpu.isa import AVX2, AVX512, PORTABLE, forced_isa
from tir_kernels.dispatch import PAIRS, kernel_for
from tir_kernels.spec import coordinate_index, flatnonzero, kernel_map, sites, union, unique
from tir_kernels.spec.coordinate_index import PLAN_SIZE, BuildIndex, Lookup, PlanIndex
from tir_kernels.spec.flatnonzero import CountNonzero, FillNonzero
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import InverseMap, ProbeMap, SubmanifoldMap
from tir_kernels.spec.sites import CopySites, FindSites, PlanSites
from tir_kernels.spec.union import SetRows
from tir_kernels.spec.unique import FillUnique, PlanUnique, RankUnique

THREADS = 3
GEOMETRY = Geometry.submanifold((3, 3, 3))
STRIDED = Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1))


def empty(*shape, dtype="int32"):
    return np.full(shape, -7, dtype)


@pytest.fixture(scope="module")
def coords():
    """int32 [N, 4]: distinct rows in random order, enough that every loop over rows or cells has several tasks."""
    side = 30
    cells = np.random.default_rng(0).permutation(side**3)[: ROW_CHUNK + 100]
    return np.stack([0 * cells, cells // side**2, cells // side % side, cells % side], 1).astype("int32")


def run_spec(spec, buffers, threads):
    run(kernel_for(spec).function, buffers, threads)


def index_of(coords, method):
    """[plan, slots, keys] of coordinates, built by the kernels."""
    plan, size = empty(PLAN_SIZE, dtype="int64"), empty(2, dtype="int64")
    run_spec(PlanIndex(method), [coords, plan, size], THREADS)
    index = [plan, empty(size[0]), empty(size[1], dtype="int64")]
    run_spec(BuildIndex(), [coords, *index], THREADS)
    return index


def map_buffers(taps, rows):
    return [empty(*array.shape, dtype=array.dtype) for array in PAIRS.arrays(taps, rows)]


@pytest.mark.parametrize("method", ["grid", "hash"])
def test_index_and_lookup(coords, method):
    index = index_of(coords, method)
    queries, rows = np.concatenate([coords[:300], coords[:300] + 40]).astype("int32"), empty(600)
    run_spec(Lookup(), [queries, *index, rows], THREADS)
    np.testing.assert_array_equal(rows, coordinate_index.naive(coords, queries))


@pytest.mark.parametrize("method", ["grid", "hash"])
def test_an_index_of_repeated_rows(coords, method):
    """Rows far from each other, which are different tasks', hold the same cell."""
    coords = coords.copy()
    coords[-50:-10] = coords[:40]
    with pytest.raises(ValueError, match=f"row {len(coords) - 50} repeats the coordinates of row 0,"):
        index_of(coords, method)


@pytest.mark.parametrize("lanes", [PORTABLE, AVX2, AVX512], ids=lambda isa: isa.name)
@pytest.mark.parametrize("method", ["grid", "hash"])
def test_submanifold_map(coords, method, lanes):
    """Two blocks, of which the last is not full; vectors of pairs end within a block."""
    coords = coords[:90]
    buffers = map_buffers(GEOMETRY.taps, len(coords))
    with forced_isa(lanes):
        run_spec(SubmanifoldMap(GEOMETRY), [coords, *index_of(coords, method), *buffers], THREADS)
    np.testing.assert_array_equal(PAIRS.unpack(*buffers), kernel_map.naive_table(coords, coords, GEOMETRY))


@pytest.mark.parametrize("lanes", [PORTABLE, AVX2, AVX512], ids=lambda isa: isa.name)
@pytest.mark.parametrize("rows", [1, 64, 79, 127])
def test_a_map_in_which_all_rows_meet(rows, lanes):
    """Every row is its own neighbour at the only tap: nothing is left of a block, and no vector may pass its end."""
    geometry = Geometry.submanifold((1, 1, 1))
    coords = np.stack([0 * np.arange(rows)] * 3 + [np.arange(rows)], 1).astype("int32")
    buffers = map_buffers(1, rows)
    with forced_isa(lanes):
        run_spec(SubmanifoldMap(geometry), [coords, *index_of(coords, "grid"), *buffers], THREADS)
    np.testing.assert_array_equal(PAIRS.unpack(*buffers), np.arange(rows)[None])


@pytest.mark.parametrize("method", ["grid", "hash"])
def test_strided_and_inverse_map(coords, method):
    coords = coords[:300]
    plan, size = empty(PLAN_SIZE, dtype="int64"), empty(3, dtype="int64")
    run_spec(PlanSites(STRIDED, "infer", method), [coords, plan, size], THREADS)
    found, count = empty(size[2], 4), empty(1, dtype="int64")
    run_spec(FindSites(STRIDED), [coords, plan, empty(size[0]), empty(size[1], dtype="int64"), found, count], THREADS)
    out = empty(count[0], 4)
    run_spec(CopySites(), [found, plan, out], THREADS)
    extent = sites.out_extent(coords[:, 1:].max(0) + 1, STRIDED)
    np.testing.assert_array_equal(out, sites.naive(coords, STRIDED, extent))
    buffers = map_buffers(STRIDED.taps, len(out))
    run_spec(ProbeMap(STRIDED), [out, *index_of(coords, method), *buffers], THREADS)
    table = kernel_map.naive_table(coords, out, STRIDED)
    np.testing.assert_array_equal(PAIRS.unpack(*buffers), table)
    inverse = map_buffers(STRIDED.taps, len(coords))
    run_spec(InverseMap(), [*buffers, coords, *inverse], THREADS)
    np.testing.assert_array_equal(PAIRS.unpack(*inverse), kernel_map.naive_inverse(table, len(coords)))


@pytest.mark.parametrize("method", ["grid", "sort"])
def test_unique(coords, method):
    """Up to 12 rows fall into one cell, in any order."""
    factor = (2, 3, 2)
    plan, size = empty(PLAN_SIZE, dtype="int64"), empty(2, dtype="int64")
    run_spec(PlanUnique(factor, method), [coords, plan, size], THREADS)
    inverse, count = empty(len(coords)), empty(1, dtype="int64")
    scratch = [empty(size[0]), empty(size[1], dtype="int64")]
    run_spec(RankUnique(factor), [coords, plan, *scratch, inverse, count], THREADS)
    out = empty(count[0], 4)
    run_spec(FillUnique(factor), [coords, inverse, out], THREADS)
    expected, expected_inverse = unique.naive(coords, factor)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(inverse, expected_inverse)


@pytest.mark.parametrize("dtype", ["bool", "int8"])
def test_flatnonzero(dtype):
    mask = np.random.default_rng(1).integers(0, 2, 2 * flatnonzero.CHUNK + 100).astype(dtype)
    before, count = empty(3, dtype="int64"), empty(1, dtype="int64")
    run_spec(CountNonzero(dtype), [mask, before, count], THREADS)
    index = empty(count[0])
    run_spec(FillNonzero(dtype), [mask, before, index], THREADS)
    np.testing.assert_array_equal(index, flatnonzero.naive(mask))


def test_rows_of_sets(coords):
    sets = [coords[:300], coords[200:250], coords[:0], coords[100:400]]
    offsets = np.cumsum([0, *map(len, sets)]).astype("int32")
    out, unchecked, expected = union.naive(sets)
    inverse, rows = empty(len(unchecked)), empty(len(sets), len(out))
    run_spec(SetRows(), [unchecked, offsets, inverse, rows], THREADS)
    np.testing.assert_array_equal(inverse, unchecked)
    np.testing.assert_array_equal(rows, expected)


def test_a_race_is_found():
    @script.prim_func(s_tir=True)
    def writes(out: T.Buffer((4,), "int32")):
        for i in T.parallel(4):
            out[i // 2] = 1

    @script.prim_func(s_tir=True)
    def reads(out: T.Buffer((4,), "int32")):
        for i in T.parallel(4):
            own = T.alloc_buffer((1,), "int32")
            own[0] = out[0]
            if i == 2:
                out[0] = own[0]

    for kernel, message in ((writes, "written by iteration 0, written by 1"), (reads, "read by iteration -2, written by 2")):
        with pytest.raises(RaceError, match=message):
            run(kernel.with_attr("global_symbol", "kernel"), [np.zeros(4, "int32")], THREADS)
        assert isinstance(kernel, tvm.tirx.PrimFunc)
