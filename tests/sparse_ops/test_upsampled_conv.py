"""Convolution after nearest upsampling: against the composition, for any fine sites; wrong parents and shapes; modules."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from tvm import relax
from tvm.relax.frontend.nn import spec

from sparse_ops import nn, op
from sparse_ops.build import build, pack_params
from sparse_ops.eager import functional as F
from sparse_ops.op.index import MAP_TYPE
from sparse_ops.testing.examples import voxels
from tests.sparse_ops.strategies import coordinates, table_of
from tests.tolerance import assert_close
from tir_kernels.spec import unique
from tir_kernels.spec.sparse_conv import naive as convolve
from tir_kernels.spec.upsampled_conv import COLUMNS, naive, tap_groups

DTYPES = {"float32": np.dtype("float32"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}


def taps_of(weight):
    """[Cout, kx, ky, kz, Cin] -> [K, Cin, Cout], as the oracle takes it."""
    return weight.reshape(weight.shape[0], -1, weight.shape[-1]).transpose(1, 2, 0)


def check(y, expected, depth, dtype):
    """Sums are float32: bfloat16 is rounded once, when it is stored."""
    assert_close(y, expected, depth if dtype == "float32" else 1, dtype=DTYPES[dtype])


def sample(rng, coords, cin=5, cout=4, dtype="float32", kernel=(3, 3, 3)):
    """x [M, cin] of the coarse sites and one more, weight, and the parent of each site."""
    coarse, parent = unique.naive(coords, (2, 2, 2))
    x = rng.standard_normal((len(coarse) + 1, cin)).astype(DTYPES[dtype])
    return x, rng.standard_normal((cout, *kernel, cin)).astype(DTYPES[dtype]), parent


@pytest.mark.parametrize("taps", [1, 15, 27, 125])
@pytest.mark.parametrize("cout", [1, 96, 128, 1000, 5000])
def test_groups_of_taps(taps, cout):
    groups = tap_groups(taps, cout)
    assert [tap for group in groups for tap in group] == list(range(taps))
    sizes = [len(group) for group in groups]
    assert min(sizes) >= 1 and max(sizes) - min(sizes) <= 1
    assert max(sizes) == 1 or max(sizes) * cout <= COLUMNS


@settings(max_examples=20, deadline=None)
@given(coords=coordinates(), seed=st.integers(0, 99))
def test_the_oracle_is_the_composition(coords, seed):
    x, weight, parent = sample(np.random.default_rng(seed), coords)
    table = table_of(F.submanifold_map(coords))
    expected = convolve(x[parent], taps_of(weight), table)
    np.testing.assert_array_equal(naive(x, taps_of(weight), table, parent), expected)


# 27 taps in one group; in three, which hand on their sums; and groups of a single tap.
@pytest.mark.parametrize(
    ("kernel", "cin", "cout", "dtype"),
    [
        ((3, 3, 3), 7, 33, "float32"),
        ((3, 3, 3), 2, 100, "float32"),
        ((3, 3, 3), 7, 100, "bfloat16"),
        ((1, 3, 1), 3, 600, "float32"),
    ],
)
@settings(max_examples=15, deadline=None)
@given(coords=coordinates(), seed=st.integers(0, 99), orphans=st.booleans())
def test_any_sites_and_channels(kernel, cin, cout, dtype, coords, seed, orphans):
    """Children may be missing, parents have none, and with `orphans` some sites have no parent and read zeros."""
    rng = np.random.default_rng(seed)
    x, weight, parent = sample(rng, coords, cin, cout, dtype, kernel)
    if orphans:
        parent[rng.random(len(parent)) < 0.3] = -1
    kernel_map = F.submanifold_map(coords, kernel)
    y = F.upsampled_conv(x, weight, kernel_map, parent)
    assert y.shape == (len(coords), cout) and y.dtype == DTYPES[dtype]
    check(y, naive(x, taps_of(weight), table_of(kernel_map), parent), 27 * cin, dtype)


def test_no_coarse_rows():
    """M = 0: every site is an orphan, and gets the bias and the residual."""
    coords = voxels(np.random.default_rng(0), 27)
    x, weight, _ = sample(np.random.default_rng(0), coords)
    bias, residual = np.arange(4, dtype="float32"), np.arange(27 * 4, dtype="float32").reshape(27, 4)
    y = F.upsampled_conv(x[:0], weight, F.submanifold_map(coords), np.full(27, -1, "int32"), bias, residual)
    np.testing.assert_array_equal(y, bias + residual)


@pytest.mark.parametrize(("activation", "dtype"), [("relu", "float32"), ("silu", "bfloat16")])
def test_bias_residual_and_activation_are_fused(activation, dtype):
    """Over three groups of taps: the bias and the residual count once, the activation sees the whole sum."""
    rng = np.random.default_rng(5)
    coords = voxels(rng, 150)
    x, weight, parent = sample(rng, coords, 5, 100, dtype)
    bias, residual = rng.standard_normal(100).astype("float32"), rng.standard_normal((len(coords), 100)).astype(DTYPES[dtype])
    kernel_map = F.submanifold_map(coords)
    y = F.upsampled_conv(x, F.Weights(weight, bias), kernel_map, parent, residual=residual, activation=activation)
    expected = naive(x, taps_of(weight), table_of(kernel_map), parent, bias, residual, activation)
    check(y, expected, 27 * 5 + 2, dtype)


COORDS = np.stack(np.unravel_index(np.arange(27), (1, 3, 3, 3)), 1).astype("int32")  # of 8 parents


def from_row(row, value):
    """Change of `parent`: all entries from `row` on become `value`."""
    return {"parent": lambda parent: np.concatenate([parent[:row], np.full(len(parent) - row, value, "int32")])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (from_row(5, 9), "parent: row 5 is 9, expected a row from 0 to 8, or -1"),
        (from_row(6, -2), "parent: row 6 is -2, expected a row from 0 to 8, or -1"),
        ({"x": lambda x: x[:0]}, "parent: row 0 is 0, expected -1, as there are no rows"),
        ({"parent": lambda p: p[:-1]}, r"parent: expected int32 \[27\], given int32 \[26\]"),
        ({"parent": lambda p: p.astype("int64")}, r"parent: expected int32 \[27\], given int64 \[27\]"),
        ({"x": lambda x: x.astype("float64")}, "x: expected float32 or bfloat16 .* given float64"),
        ({"weight": lambda w: w[..., :3].copy()}, r"x: expected 3 channels, as weight \[4, 3, 3, 3, 3\] takes, given 5"),
        ({"weight": lambda w: w[:, :1].copy()}, r"weight: expected kernel size \[3, 3, 3\], .* given \[1, 3, 3\]"),
        ({"bias": lambda b: b[:3]}, r"bias: expected float32 \[4\], given float32 \[3\]"),
        ({"residual": lambda r: r[:-1]}, r"residual: expected float32 \[27, 4\], given float32 \[26, 4\]"),
        ({"activation": lambda a: "tanh"}, "upsampled_conv: activation: expected one of 'none', .* given 'tanh'"),
        ({"kernel_map": lambda m: m.arrays}, "kernel_map: expected a KernelMap, given tuple"),
        (
            {"kernel_map": lambda m: F.strided_map(COORDS, 3, 2, 1)},
            "kernel_map: expected a map from 27 input rows to 27 output",
        ),
    ],
)
def test_bad_arguments_are_named(change, message):
    x, weight, parent = sample(np.random.default_rng(6), COORDS)
    arguments = {
        "x": x,
        "weight": weight,
        "kernel_map": F.submanifold_map(COORDS),
        "parent": parent,
        "bias": np.zeros(4, "float32"),
        "residual": np.zeros((27, 4), "float32"),
        "activation": "none",
    }
    for name, alter in change.items():
        arguments[name] = alter(arguments[name])
    with pytest.raises(ValueError, match=message):
        F.upsampled_conv(**arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": ((8,), "float32")}, "x: expected"),
        ({"x": ((8, 5), "float64")}, "x: expected .* float32 or bfloat16"),
        ({"weight": ((4, 3, 3, 3, 6), "float32")}, r"x: expected 6 channels, as weight \[4, 3, 3, 3, 6\] takes, given 5"),
        ({"weight": ((tvm.tirx.Var("c", "int64"), 3, 3, 3, 5), "float32")}, "weight: expected sizes known at compile time"),
        ({"parent": ((27,), "int64")}, "parent: expected .* int32"),
        ({"bias": ((3,), "float32")}, r"bias: expected \[4\]"),
        ({"residual": ((26, 4), "float32")}, r"residual: expected \[27, 4\]"),
    ],
)
def test_wrong_types_are_named(change, message):
    types = {
        "x": ((8, 5), "float32"),
        "weight": ((4, 3, 3, 3, 5), "float32"),
        "parent": ((27,), "int32"),
        "bias": ((4,), "float32"),
        "residual": ((27, 4), "float32"),
    } | change
    variables = {name: relax.Var(name, relax.TensorType(shape, dtype)) for name, (shape, dtype) in types.items()}
    with pytest.raises(ValueError, match=rf"sparse_ops\.upsampled_conv: {message}"):
        relax.BlockBuilder().normalize(op.upsampled_conv(kernel_map=relax.Var("kernel_map", MAP_TYPE), **variables))


INPUTS = {"feats": spec.Tensor(["n", 7], "float32"), "coords": spec.Tensor(["n", 4], "int32")}


class Levels(nn.Module):
    """Each layer in both ways, on the sites that downsampling came from and on subdivided ones."""

    def __init__(self):
        self.up = nn.SubMConv3d(7, 7)
        self.point = nn.SubMConv3d(7, 7, 1, bias=False)
        self.children = nn.SubMConv3d(7, 5, (3, 1, 3), bias=False)

    def forward(self, feats, coords):
        x = nn.Downsample(2)(nn.SymbolicSparseTensor.of(feats, coords))
        finer, children = x.sites.finer, x.sites.subdivided()
        return [
            self.up.of_upsampled(x, finer, feats, activation="silu").feats,
            self.up(nn.Upsample()(x), feats, activation="silu").feats,
            self.point.of_upsampled(x, finer, feats, activation="relu").feats,
            self.point(nn.Upsample()(x), feats, activation="relu").feats,
            self.children.of_upsampled(x, children).feats,
            self.children(nn.Subdivide()(x)).feats,
        ]


def test_modules_give_the_same_in_both_ways():
    mod, params = Levels().export_tvm({"forward": INPUTS})
    vm = relax.VirtualMachine(build(mod, lift_params=True), tvm.cpu())
    rng = np.random.default_rng(1)
    tensors = [tvm.runtime.tensor(rng.standard_normal([int(n) for n in p.shape]).astype("float32")) for _, p in params]
    packed = pack_params(vm, "forward", tensors.__getitem__)
    for rows in (0, 1, 200):
        x = rng.standard_normal((rows, 7)).astype("float32")
        results = vm["forward"](tvm.runtime.tensor(x), tvm.runtime.tensor(voxels(rng, rows)), *packed)
        for ours, plain in zip(results[::2], results[1::2], strict=True):
            assert_close(ours.numpy(), plain.numpy(), 27 * 7)


def test_only_packed_weights_are_left_of_a_parameter():
    """All that is done to a weight is done once: the function takes what the linear layer of each group of taps reads."""
    with tvm.target.Target("llvm"):
        mod = relax.transform.LegalizeOps()(Levels().export_tvm({"forward": INPUTS})[0])
    mod = relax.transform.LiftTransformParams()(mod)
    text = mod["forward"].script()
    assert "pack_weight" in mod["forward_transform_params"].script()
    assert not any(step in text for step in ("pack_weight", "transpose", "strided_slice", "reshape"))


def test_sites_that_nothing_was_downsampled_to():
    class Alone(nn.Module):
        def __init__(self):
            self.conv = nn.SubMConv3d(7, 7)

        def forward(self, feats, coords):
            x = nn.SymbolicSparseTensor.of(feats, coords)
            return self.conv.of_upsampled(x, x.sites.finer).feats

    with pytest.raises(ValueError, match="SubMConv3d: finer: expected sites and parents, given None"):
        Alone().export_tvm({"forward": INPUTS})
