"""Output sites on the emulated device: those of the oracle, in its order, and what is refused with which words."""

import numpy as np
import pytest

from tests.cuda_emulator import same_bits
from tests.tir_kernels.cuda.on_device import run
from tests.tir_kernels.cuda.test_coordinate_index import scattered
from tir_kernels.memory import VARIABLE
from tir_kernels.spec.coordinate_index import PLAN_SIZE
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.sites import CopySites, FindSites, PlanSites, naive, out_extent

GEOMETRIES = [
    Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    Geometry((2, 2, 2), (2, 2, 2)),
    Geometry((3, 1, 2), (1, 3, 2), (0, 2, 1), (2, 1, 1)),
    Geometry((2, 2, 2), (2, 2, 2), transposed=True),
    Geometry((3, 3, 1), (2, 1, 3), (1, 1, 0), (1, 2, 1), transposed=True),
]


def sites_of(coords, geometry, shape=None, method="auto", extents=(), read=True):
    given = list(extents) if shape == "given" else []
    plan, size = run(PlanSites(geometry, shape, method), [coords, *given], [((PLAN_SIZE,), "int64"), ((3,), "int64")], read)
    slots, keys, most = size
    made = [((slots,), "int32"), ((keys,), "int64"), ((most, 4), "int32"), ((1,), "int64")]
    *_, found, count = run(FindSites(geometry), [coords, plan], made)
    assert count[0] <= most
    (out,) = run(CopySites(), [found, plan], [((count[0], 4), "int32")])
    return out


@pytest.mark.parametrize("method", ["grid", "hash"])
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: repr(geometry).removeprefix("Geometry"))
def test_sites_come_in_order_of_first_touch(geometry, method):
    for rows in (0, 1, 33, 300):
        coords = scattered(2000, 6)[:rows]
        np.testing.assert_array_equal(sites_of(coords, geometry, None, method), naive(coords, geometry))
        positive = coords + np.array([0, 6, 6, 6], "int32")
        extent = out_extent((12, 11, 12), geometry)
        inside = positive[positive[:, 2] < 11]
        made = sites_of(inside, geometry, "given", method, (12, 11, 12))
        np.testing.assert_array_equal(made, naive(inside, geometry, extent))
        largest = tuple((inside[:, 1:].max(0) + 1).tolist()) if rows else (1, 1, 1)
        made = sites_of(inside, geometry, "infer", method)
        np.testing.assert_array_equal(made, naive(inside, geometry, out_extent(largest, geometry)))


def test_thousands_of_rows_and_the_same_bits_whatever_runs_first():
    coords = scattered(3000, 12)
    for method in ("grid", "hash"):
        made = same_bits(lambda: sites_of(coords, GEOMETRIES[0], None, method), (1, 2))  # noqa: B023
        np.testing.assert_array_equal(made, naive(coords, GEOMETRIES[0]))


def test_a_wide_box_takes_the_hash():
    coords = np.array([[4095, 32767, -32768, 5], [0, -32768, 32767, 5], [0, -32768, 32766, 5]], "int32")
    np.testing.assert_array_equal(sites_of(coords, GEOMETRIES[1]), naive(coords, GEOMETRIES[1]))


def test_what_is_refused():
    geometry = GEOMETRIES[0]
    coords = scattered(500, 6)
    with pytest.raises(ValueError, match=r"^coords: row \d+ has x -\d, expected 0 to 32767, or any with shape=None"):
        sites_of(coords, geometry, "infer")
    positive = coords + np.array([0, 6, 6, 6], "int32")
    first = np.flatnonzero(positive[:, 3] > 7)[0]
    with pytest.raises(ValueError, match=rf"^coords: row {first} has z \d+, expected 0 to 7$"):
        sites_of(positive, geometry, "given", "auto", (12, 12, 8))
    wide = np.array([[0, 32767, 0, 0], [0, -32768, 0, 0]], "int32")
    up = Geometry((2, 2, 2), (2, 2, 2), transposed=True)
    words = r"^coords: output sites reach from -65536 to 65535 along x, expected -32768 to 32767$"
    for method in ("auto", "hash"):
        with pytest.raises(ValueError, match=words):
            sites_of(wide, up, None, method)
    with pytest.raises(ValueError, match="given 'grid' for a box of 1 x 32769 x"):
        sites_of(np.array([[0, -32768, 0, 0], [0, 32767, 300, 300]], "int32"), geometry, None, "grid")


@pytest.mark.parametrize("shape", [None, "infer"])
def test_what_was_refused_has_no_sites(shape):
    coords = scattered(100, 6)
    coords[5] = [2**31 - 1, -(2**31), 2**31 - 1, 7]
    for geometry in (GEOMETRIES[0], GEOMETRIES[3], GEOMETRIES[4]):
        for method in ("auto", "grid", "hash"):
            assert len(sites_of(coords, geometry, shape, method, read=False)) == 0


def test_sites_that_do_not_fit_into_memory(monkeypatch):
    coords = scattered(2000, 20)
    geometry = Geometry((33, 33, 33), transposed=True)
    monkeypatch.setenv(VARIABLE, str(100 << 20))
    with pytest.raises(
        ValueError, match=r"^strided_map: expected what fits the 0.1 GiB of .* given int32 \[\d+, 4\], which takes"
    ):
        sites_of(coords, geometry, None, "hash")
