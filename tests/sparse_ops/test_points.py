"""From points to voxels and back: the laws, numpy's voxels bit for bit, properties on any cloud, graphs, wrong input."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm.relax.frontend.nn import spec

import sparse_ops
from sparse_ops import nn, op
from sparse_ops.build import build
from sparse_ops.eager import cache
from sparse_ops.eager import functional as F
from sparse_ops.testing.examples import features
from tests.sparse_ops.test_nn import Compiled
from tests.sparse_ops.walk import module_of, run, run_with
from tests.tolerance import assert_close
from tir_kernels.cpu.isa import host_target
from tir_kernels.cpu.quantize import CHUNK
from tir_kernels.spec import interpolate, quantize, segment_pool, trilinear
from tir_kernels.spec.pool import Reduction

quick = settings(max_examples=40, deadline=None)
GRID = {"voxel_size": (0.25, 0.1, 0.5), "origin": (0.5, -0.3, 0.0)}


def cloud(rng, points: int, batch: int = 2):
    """Points float32 [P, 3] of any sign, several to a voxel, and their batch index int32 [P]."""
    return rng.uniform(-1.5, 1.5, (points, 3)).astype("float32"), rng.integers(0, batch, points).astype("int32")


@st.composite
def clouds(draw, most: int = 40):
    """(points float32 [P, 3], batch_index int32 [P]): on borders of voxels and between, negative, none, one or many."""
    number = st.one_of(st.integers(-8, 8).map(lambda n: n / 4), st.floats(-2, 2, width=32))
    rows = draw(st.lists(st.tuples(st.integers(0, 2), number, number, number), max_size=most))
    table = np.array(rows, "float64").reshape(-1, 4)
    return table[:, 1:].astype("float32"), table[:, 0].astype("int32")


# The laws, once more: a loop over points and corners in Python's float64, written from the statement in docs/ops.md.


def loop_voxel(point, size, origin):
    """The voxel of a point whose numbers are exact in float32."""
    return tuple(math.floor((p - o) / s) for p, s, o in zip(point, size, origin, strict=True))


def loop_devoxelize(voxels: dict, batch: int, position, channels: int):
    """Between the voxels {(batch, x, y, z): features} around a position."""
    below = [math.floor(p) for p in position]
    total, weights = np.zeros(channels), 0.0
    for corner in itertools.product((0, 1), repeat=3):
        voxel = [b + d for b, d in zip(below, corner, strict=True)]
        weight = math.prod(1 - abs(p - v) for p, v in zip(position, voxel, strict=True))
        there = voxels.get((batch, *voxel))
        if there is not None:
            total += weight * there
            weights += weight
    return total / (weights + 1e-8)


@pytest.mark.parametrize("stride", [1, 2, (3, 1, 5)])
def test_voxels_and_weights_are_those_of_a_loop(stride):
    """Numbers of few bits, whose quotients are exact."""
    rng = np.random.default_rng(0)
    points = (rng.integers(-64, 64, (200, 3)) / 8).astype("float32")
    batch, size, origin = rng.integers(0, 2, 200).astype("int32"), (0.5, 0.25, 1.0), (1.0, -0.5, 0.125)
    strides = (stride,) * 3 if isinstance(stride, int) else stride
    voxels = [loop_voxel(point, size, origin) for point in points.tolist()]
    coords = F.quantize(points, size, batch, origin)
    np.testing.assert_array_equal(coords, [(b, *voxel) for b, voxel in zip(batch, voxels, strict=True)])
    coarse, _ = F.downsample(coords[:150], strides)
    x = features(rng, len(coarse), 3)
    table = {tuple(voxel): row for voxel, row in zip(coarse.tolist(), x.astype("f8"), strict=True)}
    index, weight = F.trilinear(coarse, points, size, batch, origin, stride)
    out = F.interpolate(x, index, weight)
    for i, point in enumerate(points.tolist()):
        position = [(p - o) / s / t for p, s, o, t in zip(point, size, origin, strides, strict=True)]
        assert_close(out[i], loop_devoxelize(table, int(batch[i]), position, 3), 19, dtype="float32", scale=np.abs(x).max())


@pytest.mark.parametrize("size", [0.1, 0.05, 1 / 3, (0.3, 7.0, 1e-3)])
def test_voxels_are_numpys_bit_for_bit(size):
    """Quotients near whole numbers, where a product with a reciprocal, or float64, finds another voxel."""
    sizes = np.broadcast_to(np.float32(size), 3)
    whole = np.random.default_rng(1).integers(-9000, 9000, (60_000, 3))
    points = np.nextafter(whole.astype("float32") * sizes, np.float32([[-np.inf], [0], [np.inf]])[np.arange(60_000) % 3])
    expected = np.floor(points / sizes).astype("int32")
    reciprocal = np.floor(points * (1 / sizes)).astype("int32")
    assert (expected != reciprocal).any() and (expected != np.floor(points / np.float64(size))).any()
    np.testing.assert_array_equal(F.quantize(points, size)[:, 1:], expected)
    origin = np.float32([0.1, -0.7, 3])
    expected = np.floor((points - origin) / sizes).astype("int32")
    np.testing.assert_array_equal(F.quantize(points, size, origin=origin)[:, 1:], expected)


@pytest.mark.parametrize("stride", [(2, 2, 2), (3, 5, 7)])
@quick
@given(cloud=clouds(), size=st.sampled_from([0.1, 0.25, 1 / 3]))
def test_a_stride_is_downsampling(stride, cloud, size):
    points, batch = cloud
    coords, inverse = F.downsample(F.quantize(points, size, batch), stride)
    np.testing.assert_array_equal(coords[inverse], F.quantize(points, size, batch, stride=stride))


@pytest.mark.parametrize("mode", ["sum", "mean", "max", "first"])
@quick
@given(cloud=clouds(), seed=st.integers(0, 9))
def test_voxelize(mode, cloud, seed):
    points, batch = cloud
    x = features(np.random.default_rng(seed), len(points), 3)
    tensor, inverse = sparse_ops.voxelize(points, x, mode=mode, batch_index=batch, **GRID)
    coords = quantize.naive(points, GRID["voxel_size"], batch, GRID["origin"])
    expected = np.unique(coords, axis=0).reshape(-1, 4)
    np.testing.assert_array_equal(tensor.coords, expected)
    np.testing.assert_array_equal(tensor.coords[inverse], coords)
    pooled = segment_pool.naive(x, inverse, len(expected), Reduction(mode))
    assert_close(tensor.feats, pooled, max(len(points), 1), dtype="float32")


def test_first_is_the_row_with_the_lowest_number():
    """Bits of the row, NaN and the sign of zero included."""
    x = np.array([[1, -0.0], [2, 5], [np.nan, 3], [4, 4], [5, np.inf]], "float32")
    index = np.array([2, -1, 0, 2, 0], "int32")
    out = F.segment_pool(x, index, 3, "first")
    expected = np.array([[np.nan, 3], [0, 0], [1, -0.0]], "float32")
    np.testing.assert_array_equal(out.view("int32"), expected.view("int32"))
    with pytest.raises(ValueError, match="mode: expected one of 'sum', 'mean', 'max', given 'first'"):
        F.pool(x[:1], F.submanifold_map(np.zeros((1, 4), "int32")), "first")


@quick
@given(cloud=clouds(), seed=st.integers(0, 9))
def test_nearest_brings_back_what_voxels_have(cloud, seed):
    points, batch = cloud
    x = features(np.random.default_rng(seed), len(points), 3)
    tensor, inverse = sparse_ops.voxelize(points, x, batch_index=batch, **GRID)
    back = sparse_ops.devoxelize(tensor, inverse)
    np.testing.assert_array_equal(back, tensor.feats[inverse])
    np.testing.assert_array_equal(sparse_ops.devoxelize(tensor, points, batch_index=batch, mode="nearest", **GRID), back)
    again, same = sparse_ops.voxelize(points, back, batch_index=batch, **GRID)
    np.testing.assert_array_equal(same, inverse)
    assert_close(again.feats, tensor.feats, max(len(points), 1), dtype="float32")  # means of means are the means


@quick
@given(cloud=clouds(), seed=st.integers(0, 9), normalize=st.booleans(), method=st.sampled_from(["grid", "hash"]))
def test_trilinear(cloud, seed, normalize, method):
    points, batch = cloud
    rng = np.random.default_rng(seed)
    near = quantize.naive(points, GRID["voxel_size"], batch, GRID["origin"], (2, 1, 2))
    near = np.concatenate([near + np.array([0, *corner]) for corner in itertools.product((0, 1), repeat=3)])
    coords = rng.permutation(np.unique(near, axis=0).reshape(-1, 4))[: rng.integers(0, len(near) + 1)].astype("int32")
    grid = {"batch_index": batch, "stride": (2, 1, 2), "normalize": normalize, **GRID}
    index, weight = F.trilinear(coords, points, method=method, **grid)
    expected_index, expected_weight = trilinear.naive(coords, points, **grid)
    np.testing.assert_array_equal(index, expected_index)
    assert_close(weight, expected_weight, 11, dtype="float32", scale=1)
    assert (weight[index < 0] == 0).all() and (weight >= 0).all()
    whole = (index >= 0).all(1)
    assert_close(weight[whole].sum(1), np.ones(whole.sum()), 11, dtype="float32")


@quick
@given(cloud=clouds(), seed=st.integers(0, 9))
def test_points_in_another_order_give_the_same_in_that_order(cloud, seed):
    points, batch = cloud
    rng = np.random.default_rng(seed)
    order, x = rng.permutation(len(points)), features(rng, len(points), 3)
    tensor, inverse = sparse_ops.voxelize(points, x, mode="max", batch_index=batch, **GRID)
    shuffled, inverse_of_shuffled = sparse_ops.voxelize(points[order], x[order], mode="max", batch_index=batch[order], **GRID)
    np.testing.assert_array_equal(shuffled.coords, tensor.coords)
    np.testing.assert_array_equal(shuffled.feats, tensor.feats)
    np.testing.assert_array_equal(inverse_of_shuffled, inverse[order])
    out = sparse_ops.devoxelize(tensor, points, batch_index=batch, **GRID)
    np.testing.assert_array_equal(sparse_ops.devoxelize(tensor, points[order], batch_index=batch[order], **GRID), out[order])


def test_at_whole_positions_stand_the_voxels_own_values():
    """Neighbours with weight 0 are there too."""
    coords = np.array([(b, *site) for b in range(2) for site in itertools.product(range(-3, 3), repeat=3)], "int32")
    coords = np.random.default_rng(0).permutation(coords)
    x = features(np.random.default_rng(1), len(coords), 5)
    tensor = sparse_ops.SparseTensor(x, coords)
    points = (coords[:, 1:] * 0.25 + 1).astype("float32")
    out = sparse_ops.devoxelize(tensor, points, 0.25, coords[:, 0].copy(), origin=1)
    np.testing.assert_array_equal(out, x)


def test_a_linear_function_is_reproduced():
    """Where all eight voxels are there, between voxels stands what a function linear along each axis has there."""
    coords = np.array([(0, *site) for site in itertools.product(range(-4, 5), repeat=3)], "int32")
    values = (coords[:, 1:] @ np.array([[1.0], [2], [-3]]) + 5).astype("float32")
    points = np.random.default_rng(0).uniform(-3.9, 3.9, (500, 3)).astype("float32")
    out = sparse_ops.devoxelize(sparse_ops.SparseTensor(values, coords), points, 1)
    assert_close(out, points.astype("f8") @ np.array([[1.0], [2], [-3]]) + 5, 19, dtype="float32", scale=np.abs(values).max())


def test_where_no_voxel_is_there_is_zero():
    tensor = sparse_ops.SparseTensor(np.ones((1, 2), "float32"), np.array([[0, 0, 0, 0]], "int32"))
    points = np.array([[0.5, 0.5, 0.5], [-0.5, 0.5, 0], [1.5, 0, 0], [0, 0, 0.999], [-0.1, 0, 0]], "float32")
    nearest = sparse_ops.devoxelize(tensor, points, 1, mode="nearest")
    assert nearest[:, 0].tolist() == [1, 0, 0, 1, 0]
    between = sparse_ops.devoxelize(tensor, points, 1)
    weight = np.array([0.125, 0.25, 0, 0.001, 0.9])
    assert_close(between[:, 0], weight / (weight + 1e-8), 11, dtype="float32")  # of the one that there is
    padded = sparse_ops.devoxelize(tensor, points, 1, normalize=False)
    assert_close(padded[:, 0], weight, 11, dtype="float32")
    other = sparse_ops.devoxelize(tensor, points, 1, np.full(5, 3, "int32"))
    assert not other.any()


def test_no_points_and_no_voxels():
    nothing = np.zeros((0, 3), "float32")
    tensor, inverse = sparse_ops.voxelize(nothing, np.zeros((0, 4), "float32"), 0.1)
    assert tensor.coords.shape == (0, 4) and tensor.feats.shape == (0, 4) and inverse.shape == (0,)
    points = np.zeros((3, 3), "float32")
    for mode in ("trilinear", "nearest"):
        assert sparse_ops.devoxelize(tensor, nothing, 0.1, mode=mode).shape == (0, 4)
        out = sparse_ops.devoxelize(tensor, points, 0.1, mode=mode)
        assert out.shape == (3, 4) and not out.any()


def test_voxels_at_the_ends_of_the_range():
    points = np.array([[32767.5, -32768, 0], [-32768, 32767.75, 1]], "float32")
    tensor, _ = sparse_ops.voxelize(points, np.array([[1.0], [2]], "float32"), 1, np.array([4095, 0], "int32"))
    assert tensor.coords.tolist() == [[0, -32768, 32767, 1], [4095, 32767, -32768, 0]]
    for method in ("auto", "hash"):
        index, _ = F.trilinear(tensor.coords, points, 1, np.array([4095, 0], "int32"), method=method)
        assert index.tolist() == [[1, *[-1] * 7], [0, *[-1] * 7]]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels", [1, 64, 200])
def test_interpolate(dtype, channels):
    rng = np.random.default_rng(2)
    x, weight = features(rng, 50, channels, dtype=dtype), features(rng, 300, 5)
    index = rng.integers(-1, 50, weight.shape).astype("int32")
    out = F.interpolate(x, index, weight)
    depth = 5 if dtype == "float32" else 1
    assert out.dtype == x.dtype
    assert_close(out, interpolate.naive(x, index, weight), depth, dtype=x.dtype)


def test_what_is_not_there_is_not_multiplied():
    x = np.array([[np.nan], [3]], "float32")
    out = F.interpolate(x, np.array([[-1, 1], [-1, -1]], "int32"), np.array([[np.nan, 2], [1, np.inf]], "float32"))
    assert out.tolist() == [[6], [0]]


def test_kinds_of_arrays_are_kept():
    rng = np.random.default_rng(3)
    (points, batch), x = cloud(rng, 50), features(rng, 50, 4)
    expected, inverse = sparse_ops.voxelize(points, x, 0.5, batch)
    for to, kind in ((torch.from_numpy, torch.Tensor), (tvm.runtime.tensor, tvm.runtime.Tensor)):
        tensor, there = sparse_ops.voxelize(to(points), to(x), 0.5, to(batch))
        outs = [sparse_ops.devoxelize(tensor, to(points), 0.5, to(batch), mode) for mode in ("trilinear", "nearest")]
        assert all(isinstance(array, kind) for array in (tensor.feats, tensor.coords, there, *outs))
        assert isinstance(F.quantize(to(points), 0.5), kind) and isinstance(
            F.trilinear(tensor.coords, to(points), 0.5)[1], kind
        )
        np.testing.assert_array_equal(tensor.feats.numpy(), expected.feats)
        np.testing.assert_array_equal(there.numpy(), inverse)
        np.testing.assert_array_equal(outs[1].numpy(), expected.feats[inverse])


def test_bfloat16_features():
    rng = np.random.default_rng(4)
    (points, batch), x = cloud(rng, 60), features(rng, 60, 4, dtype="bfloat16")
    tensor, inverse = sparse_ops.voxelize(points, x, 0.5, batch)
    assert tensor.feats.dtype == ml_dtypes.bfloat16
    pooled = segment_pool.naive(x, inverse, len(tensor.coords), Reduction("mean"))
    assert_close(tensor.feats, pooled, dtype=ml_dtypes.bfloat16)
    out = sparse_ops.devoxelize(tensor, points, 0.5, batch)
    index, weight = trilinear.naive(tensor.coords, points, 0.5, batch)
    assert_close(out, interpolate.naive(tensor.feats, index, weight), dtype=ml_dtypes.bfloat16)


def test_another_voxel_size_compiles_nothing(monkeypatch):
    rng = np.random.default_rng(5)
    (points, batch), x = cloud(rng, 50), features(rng, 50, 4)

    def cycle(size, origin):
        tensor, _ = sparse_ops.voxelize(points, x, size, batch, origin=origin)
        return [sparse_ops.devoxelize(tensor, points, size, batch, mode, origin) for mode in ("trilinear", "nearest")]

    cycle(0.5, 0)
    monkeypatch.setattr(cache, "_load_or_build", lambda *args: pytest.fail("compiled again"))
    for n in range(1, 20):
        cycle(0.1 * n, (0.1 * n, 1, -n))


def test_a_tensor_of_voxel_sizes_is_read_by_the_running_module():
    points = np.random.default_rng(6).uniform(-1, 1, (50, 3)).astype("float32")
    module = module_of(lambda p, size: op.quantize(p, size), [points, points[0]], [("p", 3), (3,)])
    executable = build(module)
    for size in ([0.1, 0.2, 0.3], [1, 2, 3]):
        (out,) = run(executable, [points, np.array(size, "float32")])
        np.testing.assert_array_equal(out, quantize.naive(points, size))
    for bad in (0, -1, np.nan, np.inf):
        with pytest.raises(ValueError, match=rf"voxel_size: expected a finite number above 0 along y, given {bad}"):
            run(executable, [points, np.array([1, bad, 1], "float32")])
    origin = build(module_of(lambda p, o: op.quantize(p, 0.1, None, o), [points, points[0]], [("p", 3), (3,)]))
    with pytest.raises(ValueError, match="origin: expected a finite number along z, given nan"):
        run(origin, [points, np.array([0, 1, np.nan], "float32")])


def quantize_and_trilinear():
    """A module of both ops, of points [P, 3] and batch index [P], on one voxel."""
    points, batch = np.zeros((1, 3), "float32"), np.zeros(1, "int32")
    coords = np.zeros((1, 4), "int32")
    both = [
        (lambda p, b, c: op.quantize(p, 0.5, b), [("p", 3), ("p",), ("n", 4)]),
        (lambda p, b, c: op.trilinear(c, p, 0.5, b), [("p", 3), ("p",), ("n", 4)]),
    ]
    return [module_of(call, [points, batch, coords], shapes) for call, shapes in both]


def test_points_without_a_voxel_are_named(isa):
    """The first of them, whichever thread finds it, on any CPU."""
    with host_target():
        executables = [build(module) for module in quantize_and_trilinear()]
    far = "which is {} voxels from the origin, expected voxels -32768 to 32767"
    for value, says in (
        (np.nan, "nan, expected a finite number"),
        (-np.inf, "-inf, expected a finite number"),
        (16384, "16384, " + far.format(32768)),
        (-16384.25, r"-16384.25, " + far.format("-32768.5")),
        (1e38, "9.99999968e\\+37, " + far.format("1.99999994e\\+38")),
        (3e38, "3.00000001e\\+38, " + far.format("inf")),
    ):
        for axis, executable in itertools.product(range(3), executables):
            points = np.zeros((3 * CHUNK, 3), "float32")
            points[[CHUNK + 7, CHUNK + 8, 3 * CHUNK - 1], axis] = value
            inputs = [points, np.zeros(len(points), "int32"), np.zeros((1, 4), "int32")]
            with pytest.raises(ValueError, match=rf"points: row {CHUNK + 7} has {'xyz'[axis]} {says}"):
                run(executable, inputs)
    batch = np.zeros(3 * CHUNK, "int32")
    for value in (-1, 4096):
        batch[-2] = value
        for executable in executables:
            with pytest.raises(ValueError, match=rf"batch_index: row {3 * CHUNK - 2} is {value}, expected 0 to 4095"):
                run(executable, [np.zeros((3 * CHUNK, 3), "float32"), batch, np.zeros((1, 4), "int32")])


def test_many_points_have_the_same_bits_with_any_number_of_threads(isa):
    rng = np.random.default_rng(7)
    (points, batch), (near, _) = cloud(rng, 5 * CHUNK), cloud(rng, 400)
    coords = np.unique(quantize.naive(near, 0.5, rng.integers(0, 2, 400)), axis=0)
    with host_target():
        executables = [build(module) for module in quantize_and_trilinear()]
    for executable, expected in zip(
        executables, ([quantize.naive(points, 0.5, batch)], trilinear.naive(coords, points, 0.5, batch)), strict=True
    ):
        one, two = (run_with(count, executable, [points, batch, coords]) for count in (1, 2))
        for a, b, wanted in zip(one, two, expected, strict=True):
            np.testing.assert_array_equal(a, b)
            kind = "int32" if wanted.dtype.kind == "i" else "float32"
            assert_close(a, wanted, 11, dtype=kind, scale=1)


def test_an_index_out_of_range_is_named():
    x, index = np.zeros((4, 3), "float32"), np.zeros((200, 8), "int32")
    index[150, 3] = index[151, 1] = 4
    with pytest.raises(ValueError, match="index: entry 3 of row 150 is 4, expected a row from 0 to 3, or -1"):
        F.interpolate(x, index, np.ones((200, 8), "float32"))
    index[70, 7] = -2
    with pytest.raises(ValueError, match="index: entry 7 of row 70 is -2, expected a row from 0 to 3, or -1"):
        F.interpolate(x, index, np.ones((200, 8), "float32"))
    with pytest.raises(ValueError, match="index: entry 0 of row 0 is 0, expected -1, as there are no rows"):
        F.interpolate(x[:0], index, np.ones((200, 8), "float32"))


POINTS, FEATS, BATCH = np.zeros((5, 3), "float32"), np.zeros((5, 2), "float32"), np.zeros(5, "int32")
VOXELS = sparse_ops.SparseTensor(FEATS[:1], np.zeros((1, 4), "int32"))
FLAT = sparse_ops.SparseTensor(FEATS[:1], np.zeros((1, 3), "int32"))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: sparse_ops.voxelize(POINTS.astype("f8"), FEATS, 1), r"points: expected float32 \[any, 3\], given float64"),
        (lambda: sparse_ops.voxelize(POINTS[:, :2], FEATS, 1), r"points: expected float32 \[any, 3\], given float32 \[5, 2\]"),
        (lambda: sparse_ops.voxelize(POINTS, FEATS[:4], 1), "feats: expected 5 rows, one for each point, given 4"),
        (lambda: sparse_ops.voxelize(POINTS, FEATS, 1, BATCH[:4]), r"batch_index: expected int32 \[5\], given int32 \[4\]"),
        (lambda: sparse_ops.voxelize(POINTS, FEATS, 0), "voxel_size: expected a number or three above 0, given 0"),
        (lambda: sparse_ops.voxelize(POINTS, FEATS, (1, 2)), r"voxel_size: expected a number or three above 0, given \(1, 2\)"),
        (lambda: sparse_ops.voxelize(POINTS, FEATS, "1"), "voxel_size: expected a number or three above 0, given '1'"),
        (lambda: sparse_ops.voxelize(POINTS, FEATS, 1e-50), "voxel_size: expected a number or three above 0, given 1e-50"),
        (lambda: sparse_ops.voxelize(POINTS, FEATS, np.inf), "voxel_size: expected a number or three above 0, given inf"),
        (lambda: sparse_ops.voxelize(POINTS, FEATS, 1, origin=(0, 0)), r"origin: expected a number or three, given \(0, 0\)"),
        (lambda: sparse_ops.voxelize(POINTS, FEATS, 1, origin=np.nan), "origin: expected a number or three, given nan"),
        (
            lambda: sparse_ops.voxelize(POINTS, FEATS, 1, mode="min"),
            "mode: expected one of 'sum', 'mean', 'max', 'first', given",
        ),
        (lambda: sparse_ops.devoxelize(FEATS, POINTS, 1), r"x: expected a SparseTensor, given float32 \[5, 2\]"),
        (lambda: sparse_ops.devoxelize(FLAT, POINTS, 1), "x: expected 3 axes beside the batch index, given 2"),
        (lambda: sparse_ops.devoxelize(VOXELS, POINTS), "voxel_size: expected a number or three above 0, given None"),
        (lambda: sparse_ops.devoxelize(VOXELS, BATCH, 1), "voxel_size: expected None with the inverse of voxelize, given 1"),
        (
            lambda: sparse_ops.devoxelize(VOXELS, BATCH, batch_index=BATCH),
            "batch_index: expected None with the inverse of voxelize, given array",
        ),
        (lambda: sparse_ops.devoxelize(VOXELS, BATCH, origin=0), "origin: expected None with the inverse of voxelize, given 0"),
        (lambda: sparse_ops.devoxelize(VOXELS, BATCH, stride=2), "stride: expected 1 with the inverse of voxelize, given 2"),
        (lambda: sparse_ops.devoxelize(VOXELS, POINTS, 1, normalize=3), "normalize: expected True or False, given 3"),
        (lambda: sparse_ops.devoxelize(VOXELS, POINTS, 1, mode="cubic"), "mode: expected one of 'trilinear', 'nearest', given"),
        (lambda: sparse_ops.devoxelize(VOXELS, POINTS, 1, stride=0), "stride: expected an int or three of at least 1, given 0"),
        (lambda: sparse_ops.devoxelize(VOXELS, BATCH + 1), "index: entry 0 is 1, expected a row from 0 to 0, or -1"),
        (lambda: F.trilinear(VOXELS.coords, POINTS, 1, method="tree"), "method: expected one of 'auto', 'grid', 'hash', given"),
        (lambda: F.interpolate(FEATS, BATCH[None], POINTS), r"weight: expected float32 \[1, 5\], given float32 \[5, 3\]"),
    ],
)
def test_wrong_arguments_are_named(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_two_rows_of_the_same_voxel_are_refused():
    with pytest.raises(ValueError, match="row 2 repeats the coordinates of row 0"):
        F.trilinear(np.array([[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]], "int32"), POINTS, 1)


class PointVoxel(nn.Module):
    """The two branches of spvcnn: a network on voxels at stride 2, and features of points, which meet at the points."""

    def __init__(self):
        self.conv = nn.SubMConv3d(5, 6, 3)
        self.down = nn.Downsample(2, "max")

    def forward(self, points, feats, batch_index, voxel_size):
        x, inverse = nn.voxelize(points, feats, voxel_size, batch_index, "mean", (0.25, 0, 1), 2)
        first, _ = nn.voxelize(points, feats, 0.5, batch_index, "first")
        h = self.down(self.conv(x))
        between = nn.devoxelize(h, points, voxel_size, batch_index, origin=(0.25, 0, 1), stride=2)
        nearest = nn.devoxelize(h, points, voxel_size, batch_index, "nearest", (0.25, 0, 1), stride=2)
        own = nn.devoxelize(x, inverse)
        return x.coords, x.feats, inverse, first.feats, h.coords, h.feats, between, nearest, own


def test_graph():
    inputs = {
        "points": spec.Tensor(["p", 3], "float32"),
        "feats": spec.Tensor(["p", 5], "float32"),
        "batch_index": spec.Tensor(["p"], "int32"),
        "voxel_size": spec.Tensor([3], "float32"),
    }
    network, origin = Compiled(PointVoxel(), inputs, lift_params=False), (0.25, 0, 1)
    conv = sparse_ops.SubMConv3d(5, 6, 3)
    conv.weight[...], conv.bias[...] = network.parameters["conv.weight"], network.parameters["conv.bias"]
    for rows, size in ((0, 0.5), (1, 0.5), (300, 0.5), (300, (0.3, 0.2, 0.7))):
        rng = np.random.default_rng(rows)
        (points, batch), x = cloud(rng, rows), features(rng, rows, 5)
        coords, feats, inverse, first, low, h, *outs = network.run(
            points, x, batch, np.broadcast_to(np.float32(size), 3).copy()
        )
        tensor, expected = sparse_ops.voxelize(points, x, size, batch, origin=origin)
        np.testing.assert_array_equal(coords, tensor.coords)
        np.testing.assert_array_equal(inverse, expected)
        np.testing.assert_array_equal(feats, tensor.feats)
        np.testing.assert_array_equal(first, sparse_ops.voxelize(points, x, 0.5, batch, "first")[0].feats)
        down, parent = F.downsample(coords, 2)
        np.testing.assert_array_equal(low, down)
        coarse = sparse_ops.SparseTensor(F.segment_pool(conv(tensor).feats, parent, len(down), "max"), down)
        assert_close(h, coarse.feats, 135, dtype="float32")
        between, nearest, own = outs
        index, weight = trilinear.naive(low, points, size, batch, origin, (2, 2, 2))
        assert_close(between, interpolate.naive(h, index, weight), 19, dtype="float32")
        np.testing.assert_array_equal(nearest, h[parent[inverse]])
        np.testing.assert_array_equal(own, feats[inverse])


def test_networks_that_do_not_fit():
    def forward(f):
        class Network(nn.Module):
            def forward(self, points, feats):
                return f(points, feats)

        inputs = {"points": spec.Tensor(["p", 3], "float32"), "feats": spec.Tensor(["p", 5], "float32")}
        return Network().export_tvm({"forward": inputs})

    for call, says in (
        (lambda p, x: nn.voxelize(p, x, 1, mode="min"), "mode: expected one of 'sum', 'mean', 'max', 'first', given 'min'"),
        (lambda p, x: nn.voxelize(p, None, 1), "voxelize: feats: expected a tensor, given None"),
        (lambda p, x: nn.voxelize(x, x, 1), r"sparse_ops.quantize: points: expected \[any, 3\] of float32"),
        (lambda p, x: nn.devoxelize(x, p, 1), "devoxelize: x: expected a SymbolicSparseTensor"),
        (lambda p, x: nn.devoxelize(nn.voxelize(p, x, 1)[0], p), "voxel_size: expected a number or three above 0, given None"),
        (lambda p, x: nn.devoxelize(*nn.voxelize(p, x, 1), 1), "voxel_size: expected None with the inverse"),
        (lambda p, x: nn.devoxelize(*nn.voxelize(p, x, 1), stride=2), "stride: expected 1 with the inverse"),
        (lambda p, x: nn.devoxelize(nn.voxelize(p, x, 1)[0], p, 1, normalize=3), "normalize: expected True or False, given 3"),
    ):
        with pytest.raises(ValueError, match=says):
            forward(call)


def test_voxels_take_features_of_points_again():
    """spvcnn's way back from points to voxels at a stride, of the ops that are there."""
    rng = np.random.default_rng(8)
    (points, batch), x = cloud(rng, 200), features(rng, 200, 4)
    tensor, inverse = sparse_ops.voxelize(points, x, 0.2, batch)
    coords, parent = F.downsample(tensor.coords, 4)
    index = F.lookup(coords, F.quantize(points, 0.2, batch, stride=4))
    np.testing.assert_array_equal(index, parent[inverse])
    pooled = F.segment_pool(x, index, len(coords), "mean")
    assert_close(pooled, segment_pool.naive(x, index, len(coords), Reduction("mean")), 50, dtype="float32")
