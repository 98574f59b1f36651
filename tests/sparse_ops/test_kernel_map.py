"""Kernel maps: the law for every tap, grid against hash, sites and their order, inverse maps, bad coordinates."""

import itertools

import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from sparse_ops.eager import functional as F
from tests.sparse_ops.strategies import coordinates, table_of
from tir_kernels.bounds import bounds_of
from tir_kernels.cpu.coordinate_index import LINE_PAD, MARGIN, PAD, SPARE
from tir_kernels.dispatch import host_target, kernel_for
from tir_kernels.spec import sites
from tir_kernels.spec.coordinate_index import PLAN_SIZE, PlanIndex
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_inverse, naive_table

SUBMANIFOLD = [((3, 3, 3), (1, 1, 1)), ((1, 3, 5), (1, 2, 3)), ((5, 5, 5), (2, 1, 1))]
STRIDED = [
    Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1)),
    Geometry((2, 2, 2), (2, 2, 2)),
    Geometry((1, 1, 1), (2, 2, 2)),
    Geometry((4, 2, 3), (2, 1, 3), (1, 0, 2), (1, 3, 2)),
    Geometry((3, 3, 3), (1, 1, 1), (2, 2, 2), (2, 2, 2)),
    Geometry((3, 1, 2), (2, 1, 3), (1, 0, 0), (1, 1, 1), True),
    Geometry((3, 3, 3), (2, 2, 2), (0, 0, 0), (2, 2, 2), True),
]
BORDERS = [
    Geometry((2, 3, 2), (3, 2, 2), (0, 1, 1), ceil_mode=True),
    Geometry((3, 3, 1), (2, 2, 2), (0, 0, 0), (2, 1, 1), ceil_mode=True),
    Geometry((2, 2, 2), (3, 2, 2), (1, 0, 1), transposed=True, output_padding=(2, 0, 1)),
    Geometry((2, 3, 1), (1, 2, 2), (0, 1, 0), (3, 1, 1), transposed=True, output_padding=(2, 1, 1)),
]
quick = settings(max_examples=40, deadline=None)


def axes_of(geometry: Geometry):
    return geometry.kernel, geometry.stride, geometry.padding, geometry.dilation


def check_law(table, coords_in, coords_out, geometry: Geometry):
    """coordinate_in = stride * coordinate_out + dilation * k - padding, for every pair of every tap."""
    for tap, offset in enumerate(geometry.offsets()):
        out = np.flatnonzero(table[tap] >= 0)
        i, o = coords_in[table[tap, out]], coords_out[out]
        if geometry.transposed:
            i, o = o, i
        assert (i[:, 0] == o[:, 0]).all()
        assert (i[:, 1:] == np.array(geometry.stride) * o[:, 1:] + offset).all()


@pytest.mark.parametrize(("kernel", "dilation"), SUBMANIFOLD)
@quick
@given(coords=coordinates())
def test_submanifold_map_keeps_the_law(kernel, dilation, coords):
    geometry = Geometry.submanifold(kernel, dilation)
    table = table_of(F.submanifold_map(coords, kernel, dilation))
    check_law(table, coords, coords, geometry)
    np.testing.assert_array_equal(table, naive_table(coords, coords, geometry))  # and no pair is missing


@pytest.mark.parametrize(("kernel", "dilation"), SUBMANIFOLD[:2])
@quick
@given(coords=coordinates())
def test_grid_and_hash_agree(kernel, dilation, coords):
    grid, hashed = (F.submanifold_map(coords, kernel, dilation, method) for method in ("grid", "hash"))
    np.testing.assert_array_equal(table_of(grid), table_of(hashed))
    np.testing.assert_array_equal(grid.arrays[2].numpy(), hashed.arrays[2].numpy())


@pytest.mark.parametrize("geometry", STRIDED, ids=str)
@settings(max_examples=25, deadline=None)
@given(coords=coordinates(max_rows=30))
def test_strided_map_keeps_the_law(geometry, coords):
    grid, hashed = (F.strided_map(coords, *axes_of(geometry), None, geometry.transposed, method) for method in ("grid", "hash"))
    out = grid.coords_out.numpy()
    np.testing.assert_array_equal(out, sites.naive(coords, geometry))  # sites and their order
    np.testing.assert_array_equal(out, hashed.coords_out.numpy())
    table = table_of(grid)
    check_law(table, coords, out, geometry)
    np.testing.assert_array_equal(table, naive_table(coords, out, geometry))
    np.testing.assert_array_equal(table, table_of(hashed))
    inverse = F.inverse_map(grid)
    np.testing.assert_array_equal(table_of(inverse), naive_inverse(table, len(coords)))


@pytest.mark.parametrize("geometry", STRIDED, ids=str)
@settings(max_examples=25, deadline=None)
@given(coords=coordinates(max_rows=30), chosen=coordinates(max_rows=30, low=-7, high=7))
def test_kernel_map_between_two_sets_keeps_the_law(geometry, coords, chosen):
    options = (*axes_of(geometry), geometry.transposed)
    grid, hashed = (F.kernel_map(coords, chosen, *options, method) for method in ("grid", "hash"))
    table = table_of(grid)
    check_law(table, coords, chosen, geometry)
    np.testing.assert_array_equal(table, naive_table(coords, chosen, geometry))  # and no pair is missing
    np.testing.assert_array_equal(table, table_of(hashed))
    inverse = F.inverse_map(grid)
    assert inverse.coords_out is grid.coords_in
    np.testing.assert_array_equal(table_of(inverse), naive_inverse(table, len(coords)))


@pytest.mark.parametrize(("kernel", "dilation"), SUBMANIFOLD[:2])
@settings(max_examples=20, deadline=None)
@given(coords=coordinates())
def test_kernel_map_onto_the_same_set_is_submanifold(kernel, dilation, coords):
    padding = Geometry.submanifold(kernel, dilation).padding
    between, own = (
        F.kernel_map(coords, coords.copy(), kernel, 1, padding, dilation),
        F.submanifold_map(coords, kernel, dilation),
    )
    np.testing.assert_array_equal(table_of(between), table_of(own))


@pytest.mark.parametrize("geometry", STRIDED[3:6], ids=str)
@settings(max_examples=20, deadline=None)
@given(coords=coordinates(max_rows=30))
def test_kernel_map_onto_its_own_sites_is_strided(geometry, coords):
    strided = F.strided_map(coords, *axes_of(geometry), None, geometry.transposed)
    between = F.kernel_map(coords, strided.coords_out, *axes_of(geometry), geometry.transposed)
    np.testing.assert_array_equal(table_of(between), table_of(strided))


@pytest.mark.parametrize("geometry", STRIDED + BORDERS, ids=str)
@settings(max_examples=20, deadline=None)
@given(coords=coordinates(max_rows=30, low=0, high=9, min_rows=1), slack=st.sampled_from([None, 10]))
def test_sites_stay_within_the_output_grid(geometry, coords, slack):
    shape = tuple(coords[:, 1:].max(axis=0) + 1) if slack is None else (slack,) * 3
    extent = sites.out_extent(shape, geometry)
    borders = {"output_padding": geometry.output_padding, "ceil_mode": geometry.ceil_mode}
    given = "infer" if slack is None else shape
    kernel_map = F.strided_map(coords, *axes_of(geometry), given, transposed=geometry.transposed, **borders)
    np.testing.assert_array_equal(kernel_map.coords_out.numpy(), sites.naive(coords, geometry, extent))


def test_extents_are_those_of_pytorch():
    """Over every size, kernel, stride and padding that PyTorch takes."""
    for n, k, s, p, d in itertools.product(range(1, 8), (1, 2, 3), (1, 2, 3, 4), (0, 1), (1, 2)):
        if p <= k // 2 and n + 2 * p > d * (k - 1):
            for ceil_mode in (False, True):
                geometry = Geometry((k,) * 3, (s,) * 3, (p,) * 3, (d,) * 3, ceil_mode=ceil_mode)
                dense = torch.nn.functional.max_pool1d(torch.zeros(1, 1, n), k, s, p, d, ceil_mode)
                assert sites.out_extent((n,) * 3, geometry) == (dense.shape[-1],) * 3
        for output_padding in range(max(s, d)) if (n - 1) * s - 2 * p + d * (k - 1) + 1 > 0 else ():
            more = (output_padding,) * 3
            geometry = Geometry((k,) * 3, (s,) * 3, (p,) * 3, (d,) * 3, transposed=True, output_padding=more)
            dense = torch.nn.functional.conv_transpose1d(
                torch.zeros(1, 1, n), torch.zeros(1, 1, k), None, s, p, output_padding, 1, d
            )
            cut = (d - 1) * (k - 1)  # spconv leaves the dilation out
            assert sites.out_extent((n,) * 3, geometry) == (dense.shape[-1] - cut,) * 3


@pytest.mark.parametrize("method", ["grid", "hash"])
def test_chosen_sites_far_away_meet_nothing(method):
    """Their taps lie beyond what a key holds: 64 * 2048 along z would come out as the next y."""
    coords = np.array([[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 5]], "int32")
    chosen = np.array([[0, 0, 0, 2048], [0, 32767, -32768, 32767], [0, 0, 1, 0], [0, -1, 0, 0]], "int32")
    geometry = Geometry((1, 1, 2), (1, 1, 64), (0, 0, 0), (1, 1, 5))
    table = table_of(F.kernel_map(coords, chosen, *axes_of(geometry), method=method))
    np.testing.assert_array_equal(table, naive_table(coords, chosen, geometry))
    assert (table >= 0).sum(axis=1).tolist() == [1, 1]


@pytest.mark.parametrize("method", ["grid", "hash"])
def test_far_queries_find_nothing(method):
    coords = np.array([[0, 0, 0, 0], [0, 0, 1, 0]], "int32")
    far = np.array([[0, 0, 0, 1 << 17], [0, 0, -1, 1 << 17], [0, 1 << 30, 0, 0], [-1, 1 << 17, 0, 0], [0, 0, 1, 0]], "int32")
    np.testing.assert_array_equal(F.lookup(coords, far, method), [-1, -1, -1, -1, 1])


def test_far_coordinates_and_taps_do_not_wrap():
    edge = 32767
    coords = np.array([[0, edge, edge, edge], [0, -edge - 1, -edge - 1, -edge - 1], [4095, 0, 0, edge]], "int32")
    for method in ("auto", "hash"):
        table = table_of(F.submanifold_map(coords, 3, 2, method))
        assert (np.delete(table, 13, axis=0) == -1).all()
        np.testing.assert_array_equal(table[13], [0, 1, 2])


def test_scattered_voxels_take_the_hash():
    """A grid over this box would hold 2^45 cells: "auto" needs none, and "grid" says so instead of trying."""
    rng = np.random.default_rng(0)
    coords = np.unique(rng.integers(-30000, 30000, (500, 4)) % [4, 60000, 60000, 60000] - [0, 30000, 30000, 30000], axis=0)
    coords = coords.astype("int32")
    auto, hashed = (F.submanifold_map(coords, 3, method=method) for method in ("auto", "hash"))
    np.testing.assert_array_equal(table_of(auto), table_of(hashed))
    assert auto.num_pairs >= len(coords)
    for build in (
        lambda: F.submanifold_map(coords, method="grid"),
        lambda: F.strided_map(coords, 2, 2, shape=None, method="grid"),
        lambda: F.lookup(coords, coords, "grid"),
        lambda: F.unique(coords, "grid"),
    ):
        with pytest.raises(
            ValueError, match=rf"method: given 'grid' for a box of 4 x \d+ x .* cells .* at most {1 << 28} cells"
        ):
            build()


def test_a_grid_has_at_most_so_many_cells():
    """Two voxels at opposite corners of a box near the limit, and of one a layer thicker; both with the empty cells around."""
    size = tvm.runtime.tensor(np.zeros(2, "int64"))
    plan = tvm.runtime.tensor(np.zeros(PLAN_SIZE, "int64"))
    spec = PlanIndex(method="grid")
    kernel = tvm.compile(kernel_for(spec).function, host_target())
    extents = np.array([1021, 1024, 256])  # with those behind the box
    before = (PAD * extents[1] + PAD) * extents[2] + LINE_PAD + MARGIN
    layer = extents[1] * extents[2]
    assert extents.prod() + before <= 1 << 28 < extents.prod() + before + layer
    for more, fits in ((0, True), (1, False)):
        box = extents - [PAD - more, PAD, LINE_PAD]
        coords = tvm.runtime.tensor(np.array([[0, 0, 0, 0], [0, *(box - 1)]], "int32"))
        if fits:
            kernel(coords, plan, size)
            assert size.numpy().tolist() == [extents.prod() + before + SPARE, 1]
            assert (size.numpy() <= bounds_of(kernel_for(spec).function, 2)["size"]).all()
        else:
            with pytest.raises(ValueError, match="for a box of 1 x 1022 x 1024 x 256 cells"):
                kernel(coords, plan, size)


@pytest.mark.parametrize("method", ["grid", "hash"])
def test_the_first_duplicate_is_named(method):
    coords = np.array([[0, 1, 2, 3], [0, 4, 5, 6], [1, 1, 2, 3], [0, 4, 5, 6], [0, 1, 2, 3]], "int32")
    for build in (
        lambda: F.submanifold_map(coords, method=method),
        lambda: F.strided_map(coords, 2, 2, method=method),
        lambda: F.lookup(coords, coords, method=method),
    ):
        with pytest.raises(ValueError, match="coords: row 3 repeats the coordinates of row 1"):
            build()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([-1, 0, 0, 0], "row 1 has batch index -1, expected 0 to 4095"),
        ([4096, 0, 0, 0], "row 1 has batch index 4096, expected 0 to 4095"),
        ([0, 32768, 0, 0], "row 1 has x 32768, expected -32768 to 32767"),
        ([0, 0, 0, -32769], "row 1 has z -32769, expected -32768 to 32767"),
    ],
)
def test_the_first_row_out_of_range_is_named(row, message):
    coords = np.array([[0, 0, 0, 0], row, row], "int32")
    for build in (lambda: F.submanifold_map(coords), lambda: F.unique(coords), lambda: F.lookup(coords, coords)):
        with pytest.raises(ValueError, match=message):
            build()


@pytest.mark.parametrize("method", ["auto", "grid", "hash"])
def test_both_sets_are_checked(method):
    good = np.array([[0, 1, 2, 3], [0, 4, 5, 6], [1, 1, 2, 3]], "int32")
    twice, outside = good[[0, 1, 0]], good + np.array([[0, 0, 0, 0], [0, 40000, 0, 0], [0, 0, 0, 0]], "int32")
    for name, arguments in (("coords_in", lambda bad: (bad, good)), ("coords_out", lambda bad: (good, bad))):
        with pytest.raises(ValueError, match=f"^{name}: row 2 repeats the coordinates of row 0, expected"):
            F.kernel_map(*arguments(twice), 3, method=method)
        with pytest.raises(ValueError, match=f"^{name}: row 1 has x 40004, expected -32768 to 32767"):
            F.kernel_map(*arguments(outside), 3, method=method)


def test_bounded_sites_refuse_rows_outside():
    coords = np.array([[0, 0, 0, 0], [0, -1, 0, 0]], "int32")
    with pytest.raises(ValueError, match="row 1 has x -1, expected 0 to"):
        F.strided_map(coords, 2, 2)
    with pytest.raises(ValueError, match="row 0 has y 5, expected 0 to 3"):
        F.strided_map(np.array([[0, 0, 5, 0]], "int32"), 2, 2, shape=(4, 4, 4))
    with pytest.raises(ValueError, match="output sites reach from"):
        F.strided_map(np.array([[0, 32000, 0, 0]], "int32"), 2, 2, shape=None, transposed=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda c: F.submanifold_map(c, 2), "kernel_size: expected odd sizes, given"),
        (lambda c: F.submanifold_map(c, (3, 3)), r"kernel_size: expected an int or three of at least 1, given \(3, 3\)"),
        (lambda c: F.submanifold_map(c, 3, 0), "dilation: expected an int or three of at least 1, given 0"),
        (lambda c: F.submanifold_map(c, 3, method="tree"), "method: expected one of 'auto', 'grid', 'hash', given 'tree'"),
        (lambda c: F.strided_map(c, 3, padding=-1), "padding: expected an int or three of at least 0, given -1"),
        (lambda c: F.strided_map(c, 3, shape="all"), "shape: expected three ints, 'infer' or None, given 'all'"),
        (lambda c: F.submanifold_map(c.astype("int64")), r"coords: expected int32 \[any, 4\], given int64 \[2, 4\]"),
        (lambda c: F.submanifold_map(c[:, :3].copy()), r"coords: expected int32 \[any, 4\], given int32 \[2, 3\]"),
        (lambda c: F.submanifold_map(c[:, ::-1]), "coords: expected .* not contiguous"),
        (lambda c: F.kernel_map(c, c.astype("int64"), 3), r"coords_out: expected int32 \[any, 4\], given int64 \[2, 4\]"),
        (lambda c: F.kernel_map(c[:, :3].copy(), c, 3), r"coords_in: expected int32 \[any, 4\], given int32 \[2, 3\]"),
        (lambda c: F.kernel_map(c, c, 3, stride=0), "kernel_map: stride: expected an int or three of at least 1, given 0"),
        (lambda c: F.kernel_map(c, c, 3, method="tree"), "method: expected one of 'auto', 'grid', 'hash', given 'tree'"),
        (lambda c: F.strided_map(c, 3, 2, output_padding=1), "output_padding: expected 0 unless the map is transposed"),
        (
            lambda c: F.strided_map(c, 3, (2, 1, 2), transposed=True, output_padding=1),
            r"output_padding: expected at most \(1, 0, 1\), which is below .* given",
        ),
        (
            lambda c: F.strided_map(c, 3, ceil_mode=True, transposed=True),
            "ceil_mode: expected False where the map is transposed",
        ),
        (lambda c: F.strided_map(c, 3, ceil_mode=2), "ceil_mode: expected True or False, given 2"),
        (lambda c: F.inverse_map(c), "kernel_map: expected a KernelMap, given int32"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(np.array([[0, 1, 2, 3], [0, 4, 5, 6]], "int32"))
