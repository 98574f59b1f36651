"""Negative coordinates: layers on a lattice without bounds, eager and as graphs, against the oracles."""

import functools

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

import sparse_ops
from sparse_ops import SparseTensor, nn
from sparse_ops.build import build
from tests.tolerance import assert_close
from tir_kernels.spec import pool, segment_pool, sites, sparse_conv
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_inverse, naive_table

DOWN = Geometry((3, 2, 3), (2, 2, 1), (1, 0, 1))
UP = Geometry((2, 2, 2), (2, 2, 2), transposed=True)
WINDOW = Geometry((2, 2, 2), (2, 2, 2))


def cloud(rows: int, low: int = -5, seed: int = 0):
    """Distinct coordinates int32 [rows, 4] of two elements, from `low` on, and features [rows, 4]."""
    rng = np.random.default_rng(seed)
    cells = rng.permutation(2 * 8**3)[:rows]
    coords = np.stack([cells // 512, *(cells // 8**axis % 8 + low for axis in (2, 1, 0))], 1).astype("int32")
    return coords, rng.standard_normal((rows, 4)).astype("float32")


def conv(x, layer, table):
    weight = layer.weight.reshape(layer.out_channels, -1, layer.in_channels).transpose(1, 2, 0)
    return sparse_conv.naive(x, weight, table, layer.bias)


@pytest.mark.parametrize("rows", [1, 3, 200])
def test_layers_on_a_lattice(rows):
    """Down, transposed, pooled and back: no voxel is dropped for lying outside of a grid."""
    coords, feats = cloud(rows)
    x = SparseTensor(feats, coords)
    down = sparse_ops.SparseConv3d(4, 6, DOWN.kernel, DOWN.stride, DOWN.padding, indice_key="down")
    back = sparse_ops.SparseInverseConv3d(6, 3, DOWN.kernel, "down")
    y = down(x)
    expected = sites.naive(coords, DOWN)
    np.testing.assert_array_equal(y.coords, expected)
    table = naive_table(coords, expected, DOWN)
    assert_close(y.feats, conv(feats, down, table), 75, dtype="float32")
    z = back(y)
    np.testing.assert_array_equal(z.coords, coords)
    assert_close(z.feats, conv(y.feats, back, naive_inverse(table, rows)), 110, dtype="float32")

    up = sparse_ops.SparseConvTranspose3d(4, 2, 2, 2)
    y = up(x)
    expected = sites.naive(coords, UP)
    np.testing.assert_array_equal(y.coords, expected)
    assert_close(y.feats, conv(feats, up, naive_table(coords, expected, UP)), 33, dtype="float32")

    expected = sites.naive(coords, WINDOW)
    for layer, mode in ((sparse_ops.SparseMaxPool3d(2), "max"), (sparse_ops.SparseAvgPool3d(2), "mean")):
        y = layer(x)
        np.testing.assert_array_equal(y.coords, expected)
        wanted = pool.naive(feats, naive_table(coords, expected, WINDOW), pool.Reduction(mode))
        assert_close(y.feats, wanted, 8, dtype="float32")

    subm = sparse_ops.SubMConv3d(4, 3, 3)
    wanted = conv(feats, subm, naive_table(coords, coords, Geometry.submanifold((3, 3, 3))))
    assert_close(subm(x).feats, wanted, 110, dtype="float32")
    wanted = segment_pool.naive(feats, coords[:, 0], x.batch_size, pool.Reduction("mean"))
    assert_close(sparse_ops.GlobalAvgPool()(x), wanted, rows, dtype="float32")
    wanted = coords[np.lexsort(coords.T[::-1])]
    np.testing.assert_array_equal(sparse_ops.sparse_add(x, x).coords, wanted)


def test_what_follows_stays_on_the_lattice():
    """A layer drops nothing on voxels that all came to lie at 0 or more, as those before it did not."""
    coords = np.array([[0, -1, -1, -1], [0, 4, 0, 2]], "int32")
    x = SparseTensor(np.ones((2, 1), "float32"), coords)
    y = sparse_ops.SparseConv3d(1, 1, 1, 2)(x)
    shifted = sparse_ops.SparseConv3d(1, 1, 3, 1, 0)(y)
    np.testing.assert_array_equal(y.coords, sites.naive(coords, Geometry((1, 1, 1), (2, 2, 2))))
    np.testing.assert_array_equal(shifted.coords, sites.naive(y.coords, Geometry((3, 3, 3))))
    assert shifted.coords.min() < 0 and y.coordinates.unbounded and shifted.coordinates.unbounded
    assert sparse_ops.sparse_add(y, y).coordinates.unbounded


@pytest.mark.parametrize("ndim", [1, 2])
def test_fewer_dimensions(ndim):
    coords, feats = cloud(30)
    narrow, first = np.unique(coords[:, : ndim + 1], axis=0, return_index=True)
    x = SparseTensor(feats[first], np.ascontiguousarray(narrow))
    layer = getattr(sparse_ops, f"SparseConv{ndim}d")(4, 2, 3, 2, 1)
    y = layer(x)
    wide, fill = np.insert(narrow, [1] * (3 - ndim), 0, axis=1), (1,) * (3 - ndim)
    geometry = Geometry((*fill, *[3] * ndim), (*fill, *[2] * ndim), (*[0] * (3 - ndim), *[1] * ndim))
    expected = sites.naive(wide, geometry)
    np.testing.assert_array_equal(y.coords, expected[:, [0, *range(4 - ndim, 4)]])
    assert_close(y.feats, conv(feats[first], layer, naive_table(wide, expected, geometry)), 40, dtype="float32")


def test_without_negatives_grids_are_bounded_as_before():
    coords, feats = cloud(50, low=0)
    y = sparse_ops.SparseConv3d(4, 2, 3, 1, 0)(SparseTensor(feats, coords))
    extent = tuple(coords[:, 1:].max(0) + 1)
    assert y.spatial_shape == tuple(n - 2 for n in extent)
    geometry = Geometry((3, 3, 3))
    np.testing.assert_array_equal(y.coords, sites.naive(coords, geometry, sites.out_extent(extent, geometry)))


def test_a_lattice_has_no_shape():
    coords, feats = cloud(5)
    x = SparseTensor(feats, coords)
    for make in (lambda: x.spatial_shape, lambda: x.dense(), lambda: sparse_ops.ToDense()(x)):
        with pytest.raises(ValueError, match=r"spatial_shape: voxels at negative .* take the smallest coordinate"):
            make()
    with pytest.raises(ValueError, match=r"coords: row 0 has . -., expected 0 to 7"):
        SparseTensor(feats, coords, 8)
    assert "spatial_shape=None" in repr(x)


class Layers(nn.Module):
    """Layers of a graph on sites that may be negative: they say shape=None."""

    def __init__(self, shape):
        self.down = nn.SparseConv3d(4, 6, DOWN.kernel, DOWN.stride, DOWN.padding, shape=shape, bias=False)
        self.up = nn.SparseConvTranspose3d(4, 2, 2, 2, shape=shape, bias=False)
        self.pool = nn.SparseMaxPool3d(2, shape=shape)

    def forward(self, feats, coords):
        x = nn.SymbolicSparseTensor.of(feats, coords)
        out = [self.down(x), self.up(x), self.pool(x)]
        return tuple(part for y in out for part in (y.coords, y.feats))


@functools.cache
def compiled(shape):
    inputs = {"feats": spec.Tensor(["n", 4], "float32"), "coords": spec.Tensor(["n", 4], "int32")}
    module, parameters = Layers(shape).export_tvm({"forward": inputs})
    rng = np.random.default_rng(1)
    values = [rng.standard_normal([int(n) for n in p.shape]).astype("float32") for _, p in parameters]
    machine = relax.VirtualMachine(build(module), tvm.cpu())
    tensors = [tvm.runtime.tensor(value) for value in values]
    return values, lambda *arrays: machine["forward"](*map(tvm.runtime.tensor, arrays), *tensors)


@pytest.mark.parametrize("rows", [0, 1, 200])
def test_graphs_on_a_lattice(rows):
    coords, feats = cloud(rows)
    (down, up), run = compiled(None)
    out = [array.numpy() for array in run(feats, coords)]
    for geometry, weight, place in ((DOWN, down, 0), (UP, up, 2)):
        expected = sites.naive(coords, geometry)
        np.testing.assert_array_equal(out[place], expected)
        table = naive_table(coords, expected, geometry)
        wanted = sparse_conv.naive(feats, weight.reshape(len(weight), -1, 4).transpose(1, 2, 0), table, None)
        assert_close(out[place + 1], wanted, 72, dtype="float32")
    expected = sites.naive(coords, WINDOW)
    np.testing.assert_array_equal(out[4], expected)
    np.testing.assert_array_equal(out[5], pool.naive(feats, naive_table(coords, expected, WINDOW), pool.Reduction("max")))


def test_graphs_that_infer_a_grid_say_what_takes_negatives():
    coords, feats = cloud(5)
    with pytest.raises(ValueError, match=r"coords: row \d has . -\d, expected 0 to 32767, or any with shape=None"):
        compiled("infer")[1](feats, coords)
