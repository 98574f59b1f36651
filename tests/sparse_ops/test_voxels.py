"""Voxels that a caller chooses, prunes and unites, eager and in graphs: against oracles and PyTorch, and wrong input."""

import functools
import gc

import ml_dtypes
import numpy as np
import pytest
import torch
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax.frontend.nn import spec

import sparse_ops
from sparse_ops import SparseTensor, nn
from sparse_ops.build import build
from sparse_ops.devices import place
from sparse_ops.eager import functional as F
from tests.sparse_ops.strategies import coordinates
from tests.tolerance import assert_close
from tir_kernels.spec import flatnonzero, pool, segment_pool, sites, sparse_conv, union
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_inverse, naive_table

ROWS = (0, 1, 2, 50)
SUBM = Geometry.submanifold((3, 3, 3))
DOWN = Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1))
UP = Geometry((2, 2, 2), (2, 2, 2), transposed=True)
WINDOW = Geometry((2, 2, 2), (2, 2, 2))


def voxels(rng, rows: int, batch: int = 2, side: int = 6):
    """int32 [rows, 4]: distinct, in any order."""
    cells = rng.permutation(batch * side**3)[:rows]
    return np.stack(np.unravel_index(cells, (batch, side, side, side)), 1).astype("int32").reshape(-1, 4)


def features(rng, *shape):
    return rng.standard_normal(shape).astype("float32")


def conv(x, weight, table, bias):
    """The oracle of a convolution, weight [Cout, kx, ky, kz, Cin]."""
    return sparse_conv.naive(x, weight.reshape(weight.shape[0], -1, weight.shape[-1]).transpose(1, 2, 0), table, bias)


def pointwise(x, weight, table, bias):
    """The oracle of a layer with kernel 1: the memory of the weight, read as [Cin, Cout]."""
    rows = pool.naive(x, table, pool.Reduction("sum"))
    return rows @ weight.reshape(x.shape[1], -1).astype("float64") + bias


@pytest.mark.parametrize("dtype", flatnonzero.DTYPES)
@settings(max_examples=20, deadline=None)
@given(entries=st.lists(st.integers(-2, 2), max_size=40))
def test_flatnonzero(dtype, entries):
    mask = np.array(entries, "int64").astype(dtype)
    np.testing.assert_array_equal(F.flatnonzero(mask), flatnonzero.naive(mask))


@pytest.mark.parametrize("method", ["auto", "grid", "sort"])
@settings(max_examples=25, deadline=None)
@given(sets=st.lists(coordinates(max_rows=20), min_size=1, max_size=4))
def test_union(method, sets):
    offsets = np.cumsum([0, *map(len, sets)]).astype("int32")
    for found, expected in zip(F.union(np.concatenate(sets), offsets, method), union.naive(sets), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_wrong_sets_are_named():
    rng = np.random.default_rng(0)
    coords = voxels(rng, 9)
    coords[7] = coords[5]
    with pytest.raises(ValueError, match="coords: row 3 of set 1 repeats the coordinates of row 1 of it"):
        F.union(coords, np.array([0, 4, 9], "int32"))
    assert len(F.union(coords, np.array([0, 6, 9], "int32"))[0]) == 8  # of two sets
    for ends in ([0, 4], [1, 9], [0, 5, 4, 9]):
        with pytest.raises(ValueError, match="offsets: "):
            F.union(coords, np.array(ends, "int32"))
    with pytest.raises(ValueError, match="method: expected one of 'auto', 'grid', 'sort', given 'hash'"):
        F.union(coords, np.array([0, 9], "int32"), "hash")
    with pytest.raises(ValueError, match=r"mask: expected bool or int8 or uint8 or int32 .* given float32"):
        F.flatnonzero(np.zeros(3, "float32"))


@pytest.mark.parametrize("rows", ROWS)
def test_layers_go_to_chosen_voxels(rows):
    rng = np.random.default_rng(rows)
    coords, chosen = voxels(rng, rows), voxels(rng, 30)
    x = SparseTensor(features(rng, rows, 5), coords, batch_size=2)
    for layer, geometry in (
        (sparse_ops.SubMConv3d(5, 4, 3), SUBM),
        (sparse_ops.SparseConv3d(5, 4, 3, 2, 1), DOWN),
        (sparse_ops.SparseConvTranspose3d(5, 4, 2, 2, output_padding=1), UP),
    ):
        y = layer(x, coordinates=chosen)
        table = naive_table(coords, chosen, geometry)
        assert_close(y.feats, conv(x.feats, layer.weight, table, layer.bias), 5 * geometry.taps + 1, dtype="float32")
        np.testing.assert_array_equal(y.coords, chosen)
        assert y.batch_size == 2
    layer = sparse_ops.SparseConv3d(5, 4, 1)
    y, table = layer(x, chosen), naive_table(coords, chosen, Geometry((1, 1, 1)))
    assert_close(y.feats, pointwise(x.feats, layer.weight, table, layer.bias), 6, dtype="float32")
    table = naive_table(coords, chosen, WINDOW)
    for layer, mode in (
        (sparse_ops.SparseMaxPool3d(2, ceil_mode=True), "max"),
        (sparse_ops.SparseAvgPool3d(2), "mean"),
        (sparse_ops.SparseSumPool3d(2), "sum"),
    ):
        pooled = layer(x, coordinates=chosen)
        assert_close(pooled.feats, pool.naive(x.feats, table, pool.Reduction(mode)), 8, dtype="float32")


def test_a_map_is_kept_for_a_pair_of_sets_only_while_both_are_there():
    rng = np.random.default_rng(1)
    x = SparseTensor(features(rng, 40, 5), voxels(rng, 40))
    other = SparseTensor(features(rng, 30, 2), voxels(rng, 30), (8, 8, 8), 3)
    layer = sparse_ops.SparseConv3d(5, 4, 3, 2, 1)
    y = layer(x, other)
    assert y.coordinates is other.coordinates and y.spatial_shape == (8, 8, 8) and y.batch_size == 3
    kept = x.coordinates.maps["chosen"]
    (kernel_map,) = kept[other.coordinates].values()
    assert layer(x, other.coordinates).coordinates is other.coordinates
    assert list(kept[other.coordinates].values()) == [kernel_map]
    del y, other
    gc.collect()
    assert not kept
    layer(x, voxels(rng, 3))  # of an array no set is there afterwards
    gc.collect()
    assert not kept
    own = sparse_ops.SubMConv3d(5, 4, 3)
    np.testing.assert_array_equal(own(x, x).feats, own(x).feats)
    assert x.coordinates.maps["chosen"][x.coordinates][SUBM, place()] is x.kernel_map((3, 3, 3), (1, 1, 1))


def test_the_inverse_of_a_layer_that_went_to_chosen_voxels():
    rng = np.random.default_rng(2)
    coords, chosen = voxels(rng, 40), voxels(rng, 30)
    x = SparseTensor(features(rng, 40, 5), coords)
    down, up = sparse_ops.SparseConv3d(5, 4, 3, 2, 1, indice_key="a"), sparse_ops.SparseInverseConv3d(4, 3, 3, "a")
    y = down(x, chosen)
    back = up(y)
    assert back.coordinates is x.coordinates
    inverse = naive_inverse(naive_table(coords, chosen, DOWN), 40)
    assert_close(back.feats, conv(y.feats, up.weight, inverse, up.bias), 4 * 27 + 1, dtype="float32")
    np.testing.assert_array_equal(down(x, chosen).feats, y.feats)  # by the key
    for call, message in (
        (lambda: down(x), "indice_key: 'a' belongs to a chosen-output map"),
        (lambda: down(x, chosen[:9].copy()), "indice_key: the map of 'a' was built for other output coordinates"),
        (lambda: up(y, chosen), "coordinates: expected None for SparseInverseConv3d"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_an_inverse_map_is_that_of_its_layer_whatever_other_threads_keep():
    """A target that the caller chose may belong to two layers, whose inverses take turns in its cache."""
    rng = np.random.default_rng(3)
    coords, chosen = voxels(rng, 40), SparseTensor(features(rng, 30, 3), voxels(rng, 30))
    down, up = sparse_ops.SparseConv3d(3, 4, 3, 2, 1, indice_key="a"), sparse_ops.SparseInverseConv3d(4, 3, 3, "a")
    y = down(SparseTensor(features(rng, 40, 3), coords), chosen)
    expected = up(y).feats
    up(down(SparseTensor(features(rng, 40, 3), coords[::-1].copy()), chosen))
    key = "inverse", place()
    theirs = chosen.coordinates.maps[key]

    class Raced(dict):
        def __setitem__(self, kept, value):
            super().__setitem__(kept, theirs if kept == key else value)

    chosen.coordinates.maps = Raced(chosen.coordinates.maps)
    np.testing.assert_array_equal(up(y).feats, expected)


def test_fewer_dimensions():
    rng = np.random.default_rng(3)
    coords = np.unique(rng.integers(0, 6, (20, 3)), axis=0).astype("int32") % np.array([1, 6, 6], "int32")
    coords = np.unique(coords, axis=0)
    x = SparseTensor(features(rng, len(coords), 5), coords, (6, 6))
    layer, chosen = sparse_ops.SubMConv2d(5, 4, 3), np.array([[0, 2, 2], [0, 9, -9]], "int32")
    y = layer(x, chosen)
    np.testing.assert_array_equal(y.coords, chosen)
    table = naive_table(np.insert(coords, 1, 0, axis=1), np.insert(chosen, 1, 0, axis=1), Geometry.submanifold((1, 3, 3)))
    assert_close(y.feats, conv(x.feats, layer.weight, table, layer.bias), 46, dtype="float32")
    assert sparse_ops.SparseConvTranspose2d(5, 4, 2, 3, output_padding=(1, 2))(x).spatial_shape == (18, 19)
    kept = sparse_ops.prune(x, coords[:, 1] > 2)
    np.testing.assert_array_equal(kept.coords, coords[coords[:, 1] > 2])


def test_borders_are_those_of_pytorch():
    """On a full grid: the last windows of a pool in ceil mode, and the layers that output padding adds."""
    rng = np.random.default_rng(4)
    grid = features(rng, 1, 3, 5, 4, 6)
    coords = np.ascontiguousarray(np.argwhere(np.ones((1, 5, 4, 6))), "int32")
    x = SparseTensor(np.ascontiguousarray(grid[0].reshape(3, -1).T), coords, (5, 4, 6))
    for ceil_mode in (False, True):
        pooled = sparse_ops.SparseMaxPool3d((2, 3, 3), (2, 2, 2), (0, 1, 0), ceil_mode=ceil_mode)(x)
        expected = torch.nn.functional.max_pool3d(torch.from_numpy(grid), (2, 3, 3), 2, (0, 1, 0), ceil_mode=ceil_mode)
        assert pooled.spatial_shape == tuple(expected.shape[2:])
        np.testing.assert_array_equal(pooled.dense(), expected.numpy())
    layer = sparse_ops.SparseConvTranspose3d(3, 4, (2, 3, 2), (3, 2, 3), (1, 1, 0), output_padding=(2, 1, 1), bias=False)
    dense = torch.nn.functional.conv_transpose3d(
        torch.from_numpy(grid).double(),
        torch.from_numpy(layer.weight).double().permute(4, 0, 1, 2, 3),
        stride=(3, 2, 3),
        padding=(1, 1, 0),
        output_padding=(2, 1, 1),
    )
    y = layer(x)
    assert y.spatial_shape == tuple(dense.shape[2:])
    assert_close(y.dense(), dense.numpy(), 3 * 12, dtype="float32")


@pytest.mark.parametrize("kind", ["numpy", "torch", "tvm"])
def test_prune(kind):
    rng = np.random.default_rng(5)
    coords, feats, mask = voxels(rng, 40), features(rng, 40, 3), rng.integers(0, 2, 40).astype(bool)
    make = {"numpy": np.asarray, "torch": torch.from_numpy, "tvm": tvm.runtime.tensor}[kind]
    x = SparseTensor(make(feats), make(coords), (6, 6, 6), 4)
    for given_mask in (mask, torch.from_numpy(mask), mask.astype("int8")):
        y = sparse_ops.prune(x, given_mask)
        assert type(y.feats) is type(x.feats)
        np.testing.assert_array_equal(np.asarray(y.feats if kind != "tvm" else y.feats.numpy()), feats[mask])
        np.testing.assert_array_equal(np.asarray(y.coords if kind != "tvm" else y.coords.numpy()), coords[mask])
        assert y.spatial_shape == (6, 6, 6) and y.batch_size == 4 and y.indice_dict is x.indice_dict
    none = sparse_ops.prune(x, np.zeros(40, bool))
    assert tuple(none.feats.shape) == (0, 3)
    assert tuple(sparse_ops.SubMConv3d(3, 4, 3)(none).feats.shape) == (0, 4)
    few = sparse_ops.SubMConv3d(3, 4, 3)(y)  # no map of x is taken for one of y
    assert few.feats.shape[0] == mask.sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cat_and_intersection(dtype):
    rng = np.random.default_rng(6)
    sets = [voxels(rng, n) for n in (60, 0, 90)]
    number = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    tensors = [SparseTensor(features(rng, len(c), i + 2).astype(number), c, (6, 6, 6), i + 2) for i, c in enumerate(sets)]
    joined = sparse_ops.sparse_cat(*tensors)
    coords, _, rows = union.naive(sets)
    np.testing.assert_array_equal(joined.coords, coords)
    assert joined.batch_size == 4 and joined.spatial_shape == (6, 6, 6) and joined.feats.dtype == number
    for i, (x, row) in enumerate(zip(tensors, rows, strict=True)):
        part = np.zeros((len(coords), i + 2), number)
        part[row >= 0] = x.feats[row[row >= 0]]
        np.testing.assert_array_equal(joined.feats[:, (0, 2, 5)[i] : (2, 5, 9)[i]], part)
    both = sparse_ops.intersection(tensors[2], tensors[0])
    keep = [tuple(c) in set(map(tuple, sets[0].tolist())) for c in sets[2].tolist()]
    assert any(keep) and not all(keep)
    np.testing.assert_array_equal(both.coords, sets[2][keep])
    np.testing.assert_array_equal(both.feats, tensors[2].feats[keep])


def sample(rows=5, axes=3, dtype="float32", shape=(6, 6, 6)):
    rng = np.random.default_rng(7)
    coords = np.stack([np.zeros(rows), *[np.arange(rows)] * axes], 1).astype("int32")
    return SparseTensor(features(rng, rows, 3).astype(dtype), coords, shape[:axes])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: sparse_ops.prune(x.feats, np.ones(5, bool)), "x: expected a SparseTensor, given float32"),
        (lambda x: sparse_ops.prune(x, np.ones(4, bool)), r"mask: expected bool .* \[5\], given bool \[4\]"),
        (lambda x: sparse_ops.prune(x, np.ones(5)), r"mask: expected bool .* given float64 \[5\]"),
        (lambda x: sparse_ops.prune(x, [True] * 5), "mask: .* neither a numpy array nor"),
        (lambda x: sparse_ops.sparse_cat(), "tensors: expected at least one SparseTensor, given none"),
        (lambda x: sparse_ops.sparse_cat(x, x.feats), r"tensors\[1\]: expected a SparseTensor, given float32"),
        (lambda x: sparse_ops.sparse_cat(x, sample(axes=2)), "tensors: expected equal axes, given 3 and 2"),
        (lambda x: sparse_ops.sparse_cat(x, sample(shape=(7, 7, 7))), "tensors: expected equal spatial_shape"),
        (lambda x: sparse_ops.sparse_cat(x, sample(dtype=ml_dtypes.bfloat16)), "tensors: expected equal dtype"),
        (
            lambda x: sparse_ops.sparse_cat(x, SparseTensor(x.feats, np.zeros((5, 4), "int32"), (6, 6, 6))),
            "row 1 of set 1 repeats the coordinates of row 0",
        ),
        (lambda x: sparse_ops.intersection(x, x.coords), "coordinates: expected a SparseTensor or its coordinates"),
        (lambda x: sparse_ops.intersection(x, sample(axes=2)), "coordinates: expected 3 axes, given 2"),
        (lambda x: sparse_ops.SubMConv3d(3, 4, 3)(x, sample(axes=2)), "coordinates: expected 3 axes, given 2"),
        (lambda x: sparse_ops.SubMConv3d(3, 4, 3)(x, "all"), "coordinates: expected a SparseTensor, .* given str 'all'"),
        (
            lambda x: sparse_ops.SubMConv3d(3, 4, 3)(x, np.zeros((5, 4))),
            r"^coordinates: expected int32 \[any, 4\], given float64 \[5, 4\]",
        ),
        (
            lambda x: sparse_ops.SubMConv3d(3, 4, 3)(x, np.array([[0, 0, 0, 40000]], "int32")),
            "^coordinates: row 0 has z 40000, expected -32768 to 32767",
        ),
        (
            lambda x: sparse_ops.SparseMaxPool3d(2)(x, np.zeros((2, 4), "int32")),
            "coords_out: row 1 repeats the coordinates of row 0",
        ),
        (lambda x: sparse_ops.SparseConv3d(3, 4, 1)(x, np.zeros((2, 4), "int32")), "coords_out: row 1 repeats"),
        (lambda x: sparse_ops.SparseMaxPool3d(2, ceil_mode=1), "ceil_mode: expected True or False, given 1"),
        (lambda x: sparse_ops.SparseMaxPool3d(2, from_zero="yes"), "from_zero: expected True or False, given 'yes'"),
        (lambda x: F.strided_map(x.coords, 2, transposed=1), "transposed: expected True or False, given 1"),
        (lambda x: F.kernel_map(x.coords, x.coords, 2, transposed=1), "transposed: expected True or False, given 1"),
        (lambda x: F.to_dense(x.feats, x.coords, 1, (6, 6, 6), 2), "channels_last: expected True or False, given 2"),
        (
            lambda x: F.segment_pool(x.feats, np.zeros(5, "int32"), 1, "max", max_from_zero=2),
            "max_from_zero: expected True or False, given 2",
        ),
        (
            lambda x: sparse_ops.SparseConvTranspose3d(3, 4, 2, 2, output_padding=2),
            r"output_padding: expected at most \(1, 1, 1\)",
        ),
        (
            lambda x: sparse_ops.SparseConvTranspose3d(3, 4, 1, dilation=2, output_padding=1),
            "output_padding: expected 0 with kernel size 1 and stride 1, given 1",
        ),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(sample())


class Chosen(nn.Module):
    """Every layer that goes to chosen sites, and one that undoes one of them."""

    def __init__(self):
        self.subm = nn.SubMConv3d(5, 4, 3)
        self.down = nn.SparseConv3d(5, 4, 3, 2, 1, indice_key="down")
        self.up = nn.SparseInverseConv3d(4, 3, 3, "down")
        self.transposed = nn.SparseConvTranspose3d(5, 4, 2, 2, bias=False)
        self.point = nn.SubMConv3d(5, 4, 1)
        self.max = nn.SparseMaxPool3d(2)

    def forward(self, feats, coords, other):
        x, target = nn.SymbolicSparseTensor.of(feats, coords, 2), nn.Sites(other, 2)
        subm = self.subm(x, sites=target)
        more = self.subm(x, subm.feats, "relu", sites=target)
        down = self.down(x, sites=target)
        up = self.up(down)
        own = self.subm(x, sites=x.sites)
        layers = [self.transposed(x, sites=target), self.point(x, sites=target), self.max(x, sites=target)]
        return *(y.feats for y in (subm, more, down, up, own, self.subm(x))), *(y.feats for y in layers)


class Sets(nn.Module):
    """Pruning by a mask that the graph computes, sums, concatenation, intersection, and borders."""

    def __init__(self):
        self.classify = nn.Linear(5, 1)
        self.conv = nn.SubMConv3d(5, 3, 3)
        self.max = nn.SparseMaxPool3d(3, 2, ceil_mode=True)
        self.up = nn.SparseConvTranspose3d(5, 3, 2, 3, output_padding=(2, 0, 1))

    def forward(self, feats, coords, other_feats, other):
        x, y = nn.SymbolicSparseTensor.of(feats, coords, 2), nn.SymbolicSparseTensor.of(other_feats, other, 3)
        scores = self.classify(x).feats
        kept = nn.prune(x, (scores > 0.0).reshape(x.sites.rows))
        total, joined, alone = nn.sparse_add(y, x, kept), nn.sparse_cat(x, y), nn.sparse_cat(x)
        both, pooled, wide = nn.intersection(x, y.sites), self.max(x), self.up(x)
        assert (total.sites.batch, joined.sites.batch, kept.sites.batch) == (3, 3, 2)
        tensors = (kept, self.conv(kept), total, joined, alone, both, pooled, wide)
        return scores, *(array for tensor in tensors for array in (tensor.coords, tensor.feats))


@functools.cache
def compiled(network):
    """(function of arrays, parameters by name)."""
    named = {"feats": ("n", 5), "coords": ("n", 4), "other_feats": ("m", 5), "other": ("m", 4)}
    names = ("feats", "coords", "other") if network is Chosen else named
    inputs = {name: spec.Tensor(list(named[name]), "float32" if "feats" in name else "int32") for name in names}
    module, params = network().export_tvm({"forward": inputs})
    vm, rng = relax.VirtualMachine(build(module), tvm.cpu()), np.random.default_rng(1)
    values = {name: features(rng, *(int(n) for n in param.shape)) for name, param in params}
    tensors = [tvm.runtime.tensor(value) for value in values.values()]
    return lambda *arrays: [out.numpy() for out in vm["forward"](*map(tvm.runtime.tensor, arrays), *tensors)], values


@pytest.mark.parametrize("rows", ROWS)
def test_chosen_sites_in_a_graph(rows):
    rng = np.random.default_rng(rows)
    coords, other, x = voxels(rng, rows), voxels(rng, 30), features(rng, rows, 5)
    run, p = compiled(Chosen)
    subm, more, down, up, own, plain, transposed, point, highest = run(x, coords, other)
    close = functools.partial(assert_close, dtype="float32")
    expected = conv(x, p["subm.weight"], naive_table(coords, other, SUBM), p["subm.bias"])
    close(subm, expected, 136)
    close(more, np.maximum(expected + subm, 0), 137)
    table = naive_table(coords, other, DOWN)
    close(down, conv(x, p["down.weight"], table, p["down.bias"]), 136)
    close(up, conv(down, p["up.weight"], naive_inverse(table, rows), p["up.bias"]), 109)
    np.testing.assert_array_equal(own, plain)
    close(transposed, conv(x, p["transposed.weight"], naive_table(coords, other, UP), None), 40)
    close(point, pointwise(x, p["point.weight"], naive_table(coords, other, Geometry((1, 1, 1))), p["point.bias"]), 6)
    np.testing.assert_array_equal(highest, pool.naive(x, naive_table(coords, other, WINDOW), pool.Reduction("max")))


@pytest.mark.parametrize("rows", ROWS)
def test_pruning_and_unions_in_a_graph(rows):
    rng = np.random.default_rng(rows)
    coords, other = voxels(rng, rows), voxels(rng, 2 * rows // 3)
    x, y = features(rng, rows, 5), features(rng, len(other), 5)
    run, p = compiled(Sets)
    scores, *results = run(x, coords, y, other)
    kept, conved, total, joined, alone, both, pooled, wide = zip(results[::2], results[1::2], strict=True)
    keep = scores[:, 0] > 0
    np.testing.assert_array_equal(kept[0], coords[keep])
    np.testing.assert_array_equal(kept[1], x[keep])
    table = naive_table(coords[keep], coords[keep], SUBM)
    assert_close(conved[1], conv(x[keep], p["conv.weight"], table, p["conv.bias"]), 136, dtype="float32")

    out, inverse, _ = union.naive([other, coords, coords[keep]])
    np.testing.assert_array_equal(total[0], out)
    expected = segment_pool.naive(np.concatenate([y, x, x[keep]]), inverse, len(out), pool.Reduction("sum"))
    assert_close(total[1], expected, 3, dtype="float32")
    out, inverse, _ = union.naive([coords, other])
    np.testing.assert_array_equal(joined[0], out)
    expected = np.zeros((len(out), 10), "float32")
    expected[inverse[:rows], :5], expected[inverse[rows:], 5:] = x, y
    np.testing.assert_array_equal(joined[1], expected)
    order = np.lexsort(coords.T[::-1])
    np.testing.assert_array_equal(alone[0], coords[order])
    np.testing.assert_array_equal(alone[1], x[order])
    shared = np.array([tuple(c) in set(map(tuple, other.tolist())) for c in coords.tolist()], bool)
    np.testing.assert_array_equal(both[0], coords[shared])
    np.testing.assert_array_equal(both[1], x[shared])

    shape = coords[:, 1:].max(0, initial=0) + 1
    window = Geometry((3, 3, 3), (2, 2, 2), ceil_mode=True)
    spread = Geometry((2, 2, 2), (3, 3, 3), transposed=True, output_padding=(2, 0, 1))
    for (found, feats), geometry in ((pooled, window), (wide, spread)):
        at = sites.naive(coords, geometry, sites.out_extent(shape, geometry))
        np.testing.assert_array_equal(found, at)
        table = naive_table(coords, at, geometry)
        if geometry is window:
            np.testing.assert_array_equal(feats, pool.naive(x, table, pool.Reduction("max")))
        else:
            assert_close(feats, conv(x, p["up.weight"], table, p["up.bias"]), 41, dtype="float32")


def test_a_graph_refuses_repeated_voxels():
    rng = np.random.default_rng(0)
    coords, x = voxels(rng, 9), features(rng, 9, 5)
    twice = coords[[0, 1, 2, 1, 4, 5, 6, 7, 8]]
    with pytest.raises(ValueError, match="coords_out: row 3 repeats the coordinates of row 1"):
        compiled(Chosen)[0](x, coords, twice)
    with pytest.raises(ValueError, match="coords: row 3 of set 0 repeats the coordinates of row 1 of it"):
        compiled(Sets)[0](x, coords, x, twice)


def export(f):
    """Export a function of `x` [n, 5] and a mask."""

    class Network(nn.Module):
        def forward(self, feats, coords, mask):
            return f(nn.SymbolicSparseTensor.of(feats, coords), mask).feats

    inputs = {"feats": spec.Tensor(["n", 5], "float32"), "coords": spec.Tensor(["n", 4], "int32")}
    return Network().export_tvm({"forward": inputs | {"mask": spec.Tensor(["k"], "bool")}})


@pytest.mark.parametrize(
    ("network", "says"),
    [
        (lambda x, mask: nn.prune(x.feats, mask), "prune: x: expected a SymbolicSparseTensor"),
        (lambda x, mask: nn.prune(x, x.feats), r"prune: mask: expected a tensor \[n\], one entry for each row of x"),
        (lambda x, mask: nn.prune(x, mask), r"prune: mask: expected a tensor \[n\], one entry for each row of x"),
        (lambda x, mask: nn.prune(x, nn.BatchPool()(x).reshape(5)), r"prune: mask: expected a tensor \[n\]"),
        (lambda x, mask: nn.prune(x, nn.Linear(5, 1)(x).feats.reshape(x.sites.rows)), "flatnonzero: mask: expected .* bool"),
        (lambda x, mask: nn.sparse_add(), "sparse_add: tensors: expected at least one SymbolicSparseTensor, given none"),
        (lambda x, mask: nn.sparse_cat(x, mask), r"sparse_cat: tensors\[1\]: expected a SymbolicSparseTensor"),
        (lambda x, mask: nn.sparse_add(x, nn.Linear(5, 4)(x)), r"sparse_add: tensors\[1\]: expected 5 channels, given 4"),
        (lambda x, mask: nn.intersection(x, x), "intersection: sites: expected a Sites"),
        (lambda x, mask: nn.SubMConv3d(5, 4)(x, sites=x.coords), "sites: expected a Sites"),
        (lambda x, mask: nn.SparseMaxPool3d(2, ceil_mode="yes")(x), "ceil_mode: expected True or False, given 'yes'"),
        (lambda x, mask: nn.SparseConvTranspose3d(5, 4, 2, 2, output_padding=2)(x), "output_padding: expected at most"),
        (lambda x, mask: nn.SparseConvTranspose3d(5, 4, 1, dilation=2, output_padding=1)(x), "output_padding: expected 0"),
    ],
)
def test_networks_that_do_not_fit(network, says):
    with pytest.raises(ValueError, match=says):
        export(network)
