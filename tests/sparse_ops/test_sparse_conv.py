"""Sparse convolution: the oracle against dense convolution and spconv, the kernel against the oracle, any size."""

import itertools
import json
import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sam3d_tvm.occupancy import load_occupancy
from sparse_ops.eager import functional as F
from tests import DATA
from tests.sparse_ops.strategies import coordinates, table_of
from tests.tolerance import assert_close
from tir_kernels.spec import sites
from tir_kernels.spec.geometry import Geometry
from tir_kernels.spec.kernel_map import naive_table
from tir_kernels.spec.sparse_conv import naive

torch = pytest.importorskip("torch")
DTYPES = {"float32": np.dtype("float32"), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
CHANNELS = [(1, 3), (7, 33), (33, 7), (3, 1)]


def sample(rng, rows, batch=2, side=7, cin=5, cout=4, kernel=(3, 3, 3)):
    cells = rng.permutation(batch * side**3)[:rows]
    coords = np.stack([cells // side**3, *(cells // side**a % side for a in (2, 1, 0))], 1).astype("int32")
    return (
        coords,
        rng.standard_normal((rows, cin)).astype("float32"),
        rng.standard_normal((cout, *kernel, cin)).astype("float32"),
    )


def oracle(x, weight, table, *rest):
    """The oracle on a weight [Cout, *kernel, Cin]."""
    return naive(x, weight.reshape(weight.shape[0], -1, weight.shape[-1]).transpose(1, 2, 0), table, *rest)


def dense(coords, x, batch, side):
    grid = torch.zeros(batch, x.shape[1], side, side, side, dtype=torch.float64)
    grid[coords[:, 0], :, coords[:, 1], coords[:, 2], coords[:, 3]] = torch.from_numpy(x.astype("float64"))
    return grid


@pytest.mark.parametrize("kernel", [(1, 1, 1), (3, 3, 3), (2, 3, 1), (5, 5, 5)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_oracle_is_a_dense_convolution(kernel, stride, dilation, batch):
    side = 9
    coords, x, weight = sample(np.random.default_rng(0), 120, batch, side, kernel=kernel)
    geometry = Geometry(kernel, (stride,) * 3, (1, 1, 1), (dilation,) * 3)
    extent = sites.out_extent((side,) * 3, geometry)
    if min(extent) < 1:
        pytest.skip("no output voxel fits")
    out_coords = sites.naive(coords, geometry, extent)
    out = oracle(x, weight, naive_table(coords, out_coords, geometry))
    full = torch.nn.functional.conv3d(
        dense(coords, x, batch, side),
        torch.from_numpy(weight.astype("float64")).permute(0, 4, 1, 2, 3),
        stride=stride,
        padding=1,
        dilation=dilation,
    ).numpy()
    here = full[out_coords[:, 0], :, out_coords[:, 1], out_coords[:, 2], out_coords[:, 3]]
    np.testing.assert_allclose(out, here, atol=1e-12)
    full[out_coords[:, 0], :, out_coords[:, 1], out_coords[:, 2], out_coords[:, 3]] = 0
    assert (full == 0).all()  # no site is missing


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_the_transposed_oracle_is_a_dense_transposed_convolution(kernel, stride, padding):
    side, batch = 6, 2
    coords, x, weight = sample(np.random.default_rng(1), 60, batch, side, kernel=(kernel,) * 3)
    geometry = Geometry((kernel,) * 3, (stride,) * 3, (padding,) * 3, transposed=True)
    out_coords = sites.naive(coords, geometry, sites.out_extent((side,) * 3, geometry))
    out = oracle(x, weight, naive_table(coords, out_coords, geometry))
    full = torch.nn.functional.conv_transpose3d(
        dense(coords, x, batch, side),
        torch.from_numpy(weight.astype("float64")).permute(4, 0, 1, 2, 3),
        stride=stride,
        padding=padding,
    ).numpy()
    here = full[out_coords[:, 0], :, out_coords[:, 1], out_coords[:, 2], out_coords[:, 3]]
    np.testing.assert_allclose(out, here, atol=1e-12)


SPCONV = """
import json, sys
import numpy as np, torch
torch.set_num_threads(1)  # with more, spconv's scatter on a CPU is a data race
import spconv.pytorch as spconv
from spconv.core import ConvAlgo
for case in json.load(sys.stdin):
    data = np.load(case["file"])
    x = spconv.SparseConvTensor(torch.from_numpy(data["x"]), torch.from_numpy(data["coords"]), case["shape"], case["batch"])
    layer = getattr(spconv, case["layer"])(data["weight"].shape[-1], data["weight"].shape[0], **case["arguments"], bias=False,
                                           algo=ConvAlgo.Native)
    layer.weight.data = torch.from_numpy(data["weight"])
    with torch.no_grad():
        y = layer(x)
    np.savez(case["file"], feats=y.features.numpy(), coords=y.indices.numpy())
"""


def test_the_oracle_is_spconv_with_one_thread(tmp_path):
    pytest.importorskip("spconv")
    cases, expected = [], []
    rng = np.random.default_rng(2)
    layers = [
        ("SubMConv3d", Geometry.submanifold((3, 3, 3)), {"kernel_size": 3}),
        ("SubMConv3d", Geometry.submanifold((1, 3, 5), (1, 2, 1)), {"kernel_size": [1, 3, 5], "dilation": [1, 2, 1]}),
        ("SparseConv3d", Geometry((3, 3, 3), (2, 2, 2), (1, 1, 1)), {"kernel_size": 3, "stride": 2, "padding": 1}),
        ("SparseConv3d", Geometry((2, 2, 2), (2, 2, 2)), {"kernel_size": 2, "stride": 2}),
        ("SparseConvTranspose3d", Geometry((2, 2, 2), (2, 2, 2), transposed=True), {"kernel_size": 2, "stride": 2}),
    ]
    for number, ((layer, geometry, arguments), (cin, cout)) in enumerate(itertools.product(layers, [(5, 4), (16, 32)])):
        coords, x, weight = sample(rng, 200, 2, 8, cin, cout, geometry.kernel)
        file = tmp_path / f"{number}.npz"
        np.savez(file, coords=coords, x=x, weight=weight)
        cases.append({"file": str(file), "shape": [8, 8, 8], "batch": 2, "layer": layer, "arguments": arguments})
        out_coords = coords
        if layer != "SubMConv3d":
            out_coords = sites.naive(coords, geometry, sites.out_extent((8, 8, 8), geometry))
        out = oracle(x, weight, naive_table(coords, out_coords, geometry))
        expected.append((file, out_coords, out, geometry.taps * cin))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", SPCONV], input=json.dumps(cases), text=True, check=True, env=environment)
    for file, out_coords, out, depth in expected:
        result = np.load(file)
        ours, theirs = (np.lexsort(coords.T[::-1]) for coords in (out_coords, result["coords"]))
        np.testing.assert_array_equal(out_coords[ours], result["coords"][theirs])
        assert_close(result["feats"][theirs], out[ours], depth, dtype="float32")


@pytest.mark.parametrize(("cin", "cout"), CHANNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=15, deadline=None)
@given(coords=coordinates(), seed=st.integers(0, 99))
def test_odd_channels_and_any_rows(cin, cout, dtype, coords, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((len(coords), cin)).astype(DTYPES[dtype])
    weight = rng.standard_normal((cout, 3, 3, 3, cin)).astype(DTYPES[dtype])
    kernel_map = F.submanifold_map(coords)
    y = F.sparse_conv(x, weight, kernel_map)
    assert y.shape == (len(coords), cout) and y.dtype == DTYPES[dtype]
    assert_close(y, oracle(x, weight, table_of(kernel_map)), 27 * cin, dtype=DTYPES[dtype])


def test_rows_in_another_order_give_the_same_bits():
    rng = np.random.default_rng(3)
    coords, x, weight = sample(rng, 300)
    order = rng.permutation(300)
    straight = F.sparse_conv(x, weight, F.submanifold_map(coords))
    shuffled = F.sparse_conv(x[order], weight, F.submanifold_map(coords[order]))
    np.testing.assert_array_equal(straight[order], shuffled)


def test_one_function_serves_every_number_of_voxels():
    """0, 1, 7, 1,000 and the 76,293 voxels of the nut at 128^3; checked in full up to 1,000, on a sample beyond."""
    nut = load_occupancy(DATA / "occupancy" / "nut_128.npz")
    rng = np.random.default_rng(4)
    weight, bias = rng.standard_normal((16, 3, 3, 3, 8)).astype("float32"), rng.standard_normal(16).astype("float32")
    for rows in (0, 1, 7, 1000, 76293):
        coords = nut[:rows]
        x = rng.standard_normal((rows, 8)).astype("float32")
        y = F.sparse_conv(x, weight, F.submanifold_map(coords), bias, activation="relu")
        some = np.sort(rng.permutation(rows)[:1000])
        table = naive_table(coords, coords[some], Geometry.submanifold((3, 3, 3)))
        assert y.shape == (rows, 16)
        assert_close(y[some], oracle(x, weight, table, bias, None, "relu"), 27 * 8, dtype="float32")


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu_tanh"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_residual_and_activation_are_fused(activation, dtype):
    rng = np.random.default_rng(5)
    coords, x, weight = sample(rng, 150)
    x, weight = x.astype(DTYPES[dtype]), weight.astype(DTYPES[dtype])
    bias, residual = rng.standard_normal(4).astype("float32"), rng.standard_normal((150, 4)).astype(DTYPES[dtype])
    kernel_map = F.submanifold_map(coords)
    y = F.sparse_conv(x, weight, kernel_map, bias, residual, activation)
    expected = oracle(x, weight, table_of(kernel_map), bias, residual, activation)
    assert_close(y, expected, 27 * 5 + 2, dtype=DTYPES[dtype])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": lambda x: x[:-1]}, "x: expected 20 rows, as the coordinates that the kernel map was built for, given 19"),
        ({"x": lambda x: x.astype("float64")}, r"x: expected float32 .* float16 \[any, any\], given float64 \[20, 5\]"),
        ({"x": lambda x: x[0]}, r"x: expected float32 .* float16 \[any, any\], given float32 \[5\]"),
        ({"x": lambda x: x[:, ::2]}, "x: expected .* not contiguous"),
        ({"x": lambda x: [1.0]}, "x: expected .* given list .* neither a numpy array nor a torch or TVM tensor"),
        ({"weight": lambda w: w[..., :3].copy()}, r"x: expected 3 channels, as weight \[4, 3, 3, 3, 3\] takes, given 5"),
        ({"weight": lambda w: w[:, :1].copy()}, r"weight: expected kernel size \[3, 3, 3\], .* given \[1, 3, 3\]"),
        ({"weight": lambda w: w.astype(ml_dtypes.bfloat16)}, "weight: expected float32 .* given bfloat16"),
        ({"bias": lambda b: b[:3]}, r"bias: expected float32 \[4\], given float32 \[3\]"),
        ({"residual": lambda r: r[:-1]}, r"residual: expected float32 \[20, 4\], given float32 \[19, 4\]"),
        ({"activation": lambda a: "tanh"}, "activation: expected one of 'none', 'relu', .* given 'tanh'"),
        ({"kernel_map": lambda m: m.arrays}, "kernel_map: expected a KernelMap, given tuple"),
    ],
)
def test_bad_arguments_are_named(change, message):
    coords, x, weight = sample(np.random.default_rng(6), 20)
    arguments = {
        "x": x,
        "weight": weight,
        "kernel_map": F.submanifold_map(coords),
        "bias": np.zeros(4, "float32"),
        "residual": np.zeros((20, 4), "float32"),
        "activation": "none",
    }
    for name, alter in change.items():
        arguments[name] = alter(arguments[name])
    with pytest.raises(ValueError, match=message):
        F.sparse_conv(**arguments)
