"""Grouped and depthwise sparse convolution: the oracle against torch, every kernel against the oracle, layers and modules."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend.nn import spec

import sparse_ops
from sparse_ops import nn, op
from sparse_ops.eager import functional as F
from sparse_ops.op.register import OPS
from tests.sparse_ops.strategies import table_of
from tests.sparse_ops.test_nn import Compiled
from tests.sparse_ops.test_sparse_conv import dense, sample
from tests.tolerance import assert_close
from tir_kernels.spec.sparse_conv import naive

torch = pytest.importorskip("torch")
DTYPES = {"float32": np.dtype("float32"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
# (Cin, Cout, groups): wide groups, narrow ones, of a width that divides no vector, and depthwise with and without a multiplier.
LAYERS = [(12, 18, 1), (12, 18, 2), (12, 18, 3), (70, 140, 2), (24, 24, 6), (32, 64, 8), (12, 12, 12), (67, 67, 67), (5, 15, 5)]


def oracle(x, weight, table, *rest, groups):
    """The oracle on a weight [Cout, *kernel, Cin / groups]."""
    taps = weight.reshape(weight.shape[0], -1, weight.shape[-1]).transpose(1, 2, 0)
    return naive(x, taps, table, *rest, groups=groups)


def grouped(rng, rows, cin, cout, groups, dtype="float32", kernel=(3, 3, 3)):
    coords, x, weight = sample(rng, rows, cin=cin, cout=cout, kernel=kernel)
    return coords, x.astype(DTYPES[dtype]), weight[..., : cin // groups].astype(DTYPES[dtype])


def whole(weight, groups):
    """The weight of one group that computes the same: zero where output and input channel are of different groups."""
    cout, *kernel, depth = weight.shape
    wide, width = np.zeros((cout, *kernel, depth * groups), weight.dtype), cout // groups
    for group in range(groups):
        rows = slice(group * width, (group + 1) * width)
        wide[rows, ..., group * depth : (group + 1) * depth] = weight[rows]
    return wide


@pytest.mark.parametrize(("cin", "cout", "groups"), [(6, 9, 3), (4, 8, 4), (4, 4, 1)])
def test_the_oracle_is_a_dense_convolution_with_groups(cin, cout, groups):
    coords, x, weight = grouped(np.random.default_rng(0), 120, cin, cout, groups)
    out = oracle(x, weight, table_of(F.submanifold_map(coords)), groups=groups)
    wide = torch.from_numpy(weight.astype("float64")).permute(0, 4, 1, 2, 3)
    full = torch.nn.functional.conv3d(dense(coords, x, 2, 7), wide, padding=1, groups=groups).numpy()
    np.testing.assert_allclose(out, full[coords[:, 0], :, coords[:, 1], coords[:, 2], coords[:, 3]], atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cin", "cout", "groups"), LAYERS)
def test_groups_are_a_block_diagonal_weight(cin, cout, groups, dtype):
    coords, x, weight = grouped(np.random.default_rng(1), 200, cin, cout, groups, dtype)
    kernel_map = F.submanifold_map(coords)
    y = F.sparse_conv(x, weight, kernel_map, groups=groups)
    depth = 27 * cin // groups if dtype == "float32" else 1
    assert_close(y, oracle(x, weight, table_of(kernel_map), groups=groups), depth, dtype=DTYPES[dtype])
    plain = F.sparse_conv(x, whole(weight, groups), kernel_map)
    assert_close(y, plain.astype("float64"), depth, dtype=DTYPES[dtype])


@pytest.mark.parametrize(("cin", "cout", "groups"), LAYERS[1:])
def test_what_is_not_finite_stays_in_its_group(cin, cout, groups):
    coords, x, weight = grouped(np.random.default_rng(2), 60, cin, cout, groups)
    x[:, cin // groups] = np.inf  # the first channel of the second group
    y = F.sparse_conv(x, weight, F.submanifold_map(coords), groups=groups)
    width = cout // groups
    strange = ~np.isfinite(y).all(0)
    np.testing.assert_array_equal(np.flatnonzero(strange), np.arange(width, 2 * width))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("cin", "cout", "groups"), [(67, 67, 67), (24, 24, 6), (28, 40, 4)])
def test_order_of_rows_and_number_of_blocks_change_no_bit(cin, cout, groups, dtype):
    rng = np.random.default_rng(3)
    coords, x, weight = grouped(rng, 300, cin, cout, groups, dtype)
    order = rng.permutation(300)
    straight = F.sparse_conv(x, weight, F.submanifold_map(coords), groups=groups)
    shuffled = F.sparse_conv(x[order], weight, F.submanifold_map(coords[order]), groups=groups)
    np.testing.assert_array_equal(straight[order].view("uint8"), shuffled.view("uint8"))


@pytest.mark.parametrize(("cin", "cout", "groups"), [(8, 8, 8), (8, 16, 4), (24, 36, 2)])
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_with_all_that_is_fused(cin, cout, groups, rows):
    rng = np.random.default_rng(4)
    coords, x, weight = grouped(rng, rows, cin, cout, groups)
    bias, residual = rng.standard_normal(cout).astype("float32"), rng.standard_normal((rows, cout)).astype("float32")
    kernel_map = F.submanifold_map(coords)
    y = F.sparse_conv(x, weight, kernel_map, bias, residual, "silu", groups)
    expected = oracle(x, weight, table_of(kernel_map), bias, residual, "silu", groups=groups)
    assert_close(y, expected, 27 * cin // groups + 2, dtype="float32")


@pytest.mark.parametrize(
    ("groups", "shape", "message"),
    [
        (4, (12, 3, 3, 3, 2), "groups: expected a divisor of 6 input and 12 output channels, given 4"),
        (3, (4, 3, 3, 3, 2), "groups: expected a divisor of 6 input and 4 output channels, given 3"),
        (0, (12, 3, 3, 3, 6), "groups: expected an int of at least 1, given 0"),
        (2.0, (12, 3, 3, 3, 3), "groups: expected an int of at least 1, given 2.0"),
        (2, (12, 3, 3, 3, 6), r"x: expected 12 channels, as weight \[12, 3, 3, 3, 6\] in 2 groups takes, given 6"),
        (1, (12, 3, 3, 3, 3), r"x: expected 3 channels, as weight \[12, 3, 3, 3, 3\] takes, given 6"),
    ],
)
def test_bad_groups_are_named(groups, shape, message):
    coords, x, _ = sample(np.random.default_rng(5), 20, cin=6)
    with pytest.raises(ValueError, match=message):
        F.sparse_conv(x, np.zeros(shape, "float32"), F.submanifold_map(coords), groups=groups)


def test_what_an_op_takes_in_leaves_its_groups():
    n, blocks, slots, columns = (tvm.tirx.Var(name, "int64") for name in ("n", "blocks", "slots", "columns"))
    arrays = (([blocks, slots], "int32"), ([blocks, slots], "int32"), ([blocks, columns], "int32"), ([2], "int64"))
    kernel_map = relax.Tuple([relax.Var("array", relax.TensorType(*array)) for array in arrays])
    x, coords = relax.Var("x", relax.TensorType([n, 6], "float32")), relax.Var("c", relax.TensorType([n, 4], "int32"))
    weight = relax.Var("w", relax.TensorType([12, 3, 3, 3, 2], "float32"))
    more = OPS["sparse_conv"].with_more(op.sparse_conv(x, weight, kernel_map, coords, groups=3), {}, {"activation": "relu"})
    more = relax.BlockBuilder().normalize(more)
    assert OPS["sparse_conv"].signature.options_of(more) == {"activation": "relu", "groups": 3, "products": "float"}
    assert [int(more.ty.shape.values[1])] == [12]


def layers_of(dimensions: int, groups: int):
    """Every convolution of that many dimensions, 6 to 6 channels; the last undoes the strided one."""
    name = f"{dimensions}d"
    return [
        getattr(sparse_ops, f"SubMConv{name}")(6, 6, 3, groups=groups),
        getattr(sparse_ops, f"SubMConv{name}")(6, 6, 1, groups=groups),
        getattr(sparse_ops, f"SparseConv{name}")(6, 6, 1, groups=groups, bias=False),
        getattr(sparse_ops, f"SparseConvTranspose{name}")(6, 6, 2, 2, groups=groups),
        getattr(sparse_ops, f"SparseConv{name}")(6, 6, 2, 2, groups=groups, indice_key="down"),
        getattr(sparse_ops, f"SparseInverseConv{name}")(6, 6, 2, "down", groups=groups),
    ]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_layers_are_those_of_the_block_diagonal_weight(dimensions):
    """Kernel 1 too: with groups it is an ordinary convolution, not spconv's reading of memory."""
    rng = np.random.default_rng(6)
    coords = sample(rng, 60)[0][:, : dimensions + 1]
    coords = np.unique(coords, axis=0)
    x = sparse_ops.SparseTensor(rng.standard_normal((len(coords), 6)).astype("float32"), coords, (8,) * dimensions, 2)
    for layer, plain in zip(layers_of(dimensions, 3), layers_of(dimensions, 1), strict=True):
        assert layer.weight.shape == (6, *layer.kernel_size, 2)
        y, weight = layer(x), whole(layer.weight, 3)
        if max(layer.kernel_size) == 1:
            expected = x.feats.astype("f8") @ weight.reshape(6, 6).T + (0 if layer.bias is None else layer.bias)
        else:
            plain.load_state_dict({"weight": weight, "bias": layer.bias})
            expected = plain(x).feats
        assert_close(y.feats, np.asarray(expected, "f8"), 6 * 27, dtype="float32")
        x = y


class Modules(nn.Module):
    """Grouped convolutions of a graph, also behind upsampling."""

    def __init__(self):
        self.subm = nn.SubMConv3d(6, 12, 3, groups=6)
        self.point = nn.SubMConv3d(12, 6, 1, groups=2)
        self.down = nn.SparseConv3d(6, 6, 2, 2, indice_key="down", groups=3)
        self.up = nn.SparseInverseConv3d(6, 6, 2, "down", groups=2)
        self.halve = nn.Downsample(2, "mean")
        self.finer = nn.SubMConv3d(6, 6, 3, groups=3)

    def forward(self, feats, coords):
        x = nn.SymbolicSparseTensor.of(feats, coords)
        subm = self.subm(x, activation="relu")
        point = self.point(subm)
        up = self.up(self.down(point))
        coarse = self.halve(up)
        return subm.feats, point.feats, up.feats, coarse.feats, self.finer.of_upsampled(coarse, coarse.sites.finer).feats


@pytest.mark.parametrize("rows", [1, 90])
def test_modules_agree_with_eager_layers(rows):
    rng = np.random.default_rng(7)
    inputs = {"feats": spec.Tensor(["n", 6], "float32"), "coords": spec.Tensor(["n", 4], "int32")}
    compiled = Compiled(Modules(), inputs, lift_params=True)
    p = compiled.parameters
    coords, feats, _ = sample(rng, rows, cin=6)
    outputs = compiled.run(feats, coords)
    subm, point, up, coarse, finer = outputs

    x = sparse_ops.SparseTensor(feats, coords)
    kernel_map = F.submanifold_map(coords)
    expected = F.sparse_conv(feats, p["subm.weight"], kernel_map, p["subm.bias"], None, "relu", 6)
    np.testing.assert_array_equal(subm, expected)
    eager = {
        "point": sparse_ops.SubMConv3d(12, 6, 1, groups=2),
        "down": sparse_ops.SparseConv3d(6, 6, 2, 2, groups=3, indice_key="down"),
        "up": sparse_ops.SparseInverseConv3d(6, 6, 2, "down", groups=2),
    }
    x = x.replace_feature(subm)
    for name, layer in eager.items():
        layer.load_state_dict({part: p[f"{name}.{part}"] for part in ("weight", "bias")})
        x = layer(x)
        if name == "point":
            np.testing.assert_array_equal(point, x.feats)
    np.testing.assert_array_equal(up, x.feats)
    _, parent = F.downsample(coords, 2)
    upsampled = F.gather_rows(coarse, parent)
    np.testing.assert_array_equal(finer, F.sparse_conv(upsampled, p["finer.weight"], kernel_map, p["finer.bias"], groups=3))


def test_modules_refuse_groups_that_do_not_divide():
    with pytest.raises(ValueError, match="groups: expected a divisor of 6 input and 9 output channels, given 2"):
        nn.SubMConv3d(6, 9, 3, groups=2)
