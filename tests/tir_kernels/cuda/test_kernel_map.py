"""Kernel maps on a device: neighbour tables of all kinds of geometry, their order and tiles, and what they refuse."""

import numpy as np
import pytest

from tests.cuda_emulator import same_bits
from tests.tir_kernels.cuda.on_device import GPU, run
from tests.tir_kernels.cuda.test_coordinate_index import index_of, scattered
from tir_kernels.cuda import kernel_map as kernels
from tir_kernels.layout import MASK_TAPS, NeighbourTable
from tir_kernels.spec import sites
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import InverseMap, ProbeMap, SubmanifoldMap, naive_inverse, naive_table

LAYOUT = NeighbourTable()
SUBMANIFOLD = [
    Geometry.submanifold((1, 1, 1)),
    Geometry.submanifold((3, 3, 3)),
    Geometry.submanifold((5, 5, 5)),
    Geometry.submanifold((1, 3, 5), (2, 1, 3)),
    Geometry.submanifold((3, 1, 3), (20000, 1, 4)),
]
PROBED = [
    Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    Geometry((2, 2, 2), (2, 2, 2)),
    Geometry((3, 1, 2), (1, 3, 2), (0, 2, 1), (2, 1, 1)),
    Geometry((2, 2, 2), (2, 2, 2), transposed=True),
    Geometry((3, 3, 1), (2, 1, 3), (1, 1, 0), (1, 2, 1), transposed=True),
    Geometry((4, 4, 4), (2, 2, 2), (1, 1, 1)),
]


def outputs_of(taps, rows, layout=LAYOUT):
    return [(array.shape, array.dtype) for array in layout.arrays(taps, rows)]


def check_order(arrays, layout=LAYOUT):
    """Rows ascend by the Gray code of the taps of their group that they meet, and then by their number."""
    neighbours, order, _, rows = arrays
    assert layout.problem(*arrays) == ""
    taps, count = len(neighbours), int(rows[1])
    groups = layout.tap_groups(taps)
    for group in range(groups):
        first, end = layout.group_taps(group, groups, taps)
        codes = np.zeros(count, object)
        if end - first <= MASK_TAPS:
            for bit, line in enumerate(neighbours[first:end, :count]):
                codes = codes | ((line >= 0).astype(object) << bit)
            codes = codes ^ (codes >> 1)
        keys = list(zip(codes.tolist(), order[group, :count].tolist(), strict=True))
        assert keys == sorted(keys)


def id_of(geometry):
    return repr(geometry).removeprefix("Geometry")


@pytest.mark.parametrize("method", ["grid", "hash"])
@pytest.mark.parametrize("geometry", SUBMANIFOLD, ids=id_of)
def test_submanifold(geometry, method):
    for rows in (0, 1, 127, 128, 129, 300):
        coords = scattered(2000, 5)[:rows]
        index = index_of(coords, method)
        arrays = run(SubmanifoldMap(geometry), [coords, *index], outputs_of(geometry.taps, rows))
        np.testing.assert_array_equal(arrays[3], [rows, rows])
        np.testing.assert_array_equal(LAYOUT.unpack(*arrays), naive_table(coords, coords, geometry))
        check_order(arrays)


@pytest.mark.parametrize("method", ["grid", "hash"])
@pytest.mark.parametrize("geometry", PROBED, ids=id_of)
def test_probed(geometry, method):
    for rows in (0, 1, 200):
        coords = scattered(2000, 5)[:rows]
        out = sites.naive(coords, geometry)
        index = index_of(coords, method)
        arrays = run(ProbeMap(geometry), [out, *index], outputs_of(geometry.taps, len(out)))
        table = naive_table(coords, out, geometry)
        np.testing.assert_array_equal(LAYOUT.unpack(*arrays), table)
        np.testing.assert_array_equal(arrays[3], [rows, len(out)])
        check_order(arrays)
        inverse = run(InverseMap(), [*arrays, coords], outputs_of(geometry.taps, rows))
        np.testing.assert_array_equal(LAYOUT.unpack(*inverse), naive_inverse(table, rows))
        np.testing.assert_array_equal(inverse[3], [len(out), rows])
        check_order(inverse)


def test_chosen_outputs_far_away():
    """Output coordinates at the ends of their range: no neighbour's key wraps into another."""
    ends = np.array([[0, x, y, z] for x in (-32768, 32767) for y in (-32768, 32767) for z in (-32768, 0, 32767)], "int32")
    coords = np.concatenate([ends, ends + np.array([1, 0, 0, 0], "int32")])
    for geometry in (Geometry.submanifold((3, 3, 3)), Geometry((3, 3, 3), (30000, 2, 1), (1, 1, 1), (9, 30000, 1))):
        index = index_of(coords)
        slots = np.zeros(1, "int32")
        arrays = run(ProbeMap(geometry, chosen=True), [coords, *index, slots], outputs_of(geometry.taps, len(coords)))
        np.testing.assert_array_equal(LAYOUT.unpack(*arrays), naive_table(coords, coords, geometry))


def test_groups_of_taps(monkeypatch):
    layout = NeighbourTable(3)
    monkeypatch.setattr(kernels, "NEIGHBOURS", layout)
    of_inverse = kernels.inverse_map.__wrapped__(InverseMap(), GPU)
    for kernel in ((1, 1, 1), (1, 1, 2), (3, 3, 3)):
        geometry = Geometry(kernel, padding=tuple(k // 2 for k in kernel))
        of_probe = kernels.map_onto(geometry, "probe_map", "slots_out_")
        for rows in (0, 1, 270):
            coords = scattered(2000, 5)[:rows]
            arrays = run(of_probe, [coords, *index_of(coords)], outputs_of(geometry.taps, rows, layout))
            assert len(arrays[1]) == min(3, geometry.taps)
            table = naive_table(coords, coords, geometry)
            np.testing.assert_array_equal(layout.unpack(*arrays), table)
            check_order(arrays, layout)
            inverse = run(of_inverse, [*arrays, coords], outputs_of(geometry.taps, rows, layout))
            np.testing.assert_array_equal(layout.unpack(*inverse), naive_inverse(table, rows))
            check_order(inverse, layout)


def test_inverse_of_another_map():
    coords = scattered(2000, 5)[:150]
    geometry = Geometry.submanifold((3, 3, 3))
    arrays = run(SubmanifoldMap(geometry), [coords, *index_of(coords)], outputs_of(27, 150))
    with pytest.raises(ValueError, match=r"expected a map from 149 input rows to 150 output rows.*from 150 to 150"):
        run(InverseMap(), [*arrays, coords[:149]], outputs_of(27, 149))


def test_thousands_of_rows_with_the_same_bits_whatever_runs_first():
    coords = scattered(9000, 10)
    geometry = Geometry.submanifold((3, 3, 3))
    arrays = same_bits(
        lambda: run(SubmanifoldMap(geometry), [coords, *index_of(coords)], outputs_of(27, len(coords)))[:2], (1, 2)
    )
    np.testing.assert_array_equal(
        LAYOUT.unpack(*arrays, None, np.array([len(coords)] * 2)), naive_table(coords, coords, geometry)
    )
