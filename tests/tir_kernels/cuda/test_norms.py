"""Norms, softmax and arithmetic by channel on the emulated CUDA device: sizes around a warp's, extreme values, wrong input."""

import numpy as np
import pytest
import tvm
from tvm import relax

from sparse_ops import op
from sparse_ops.build import build
from sparse_ops.testing.examples import features
from tests.cuda_device import cuda_target, device
from tests.cuda_emulator import same_bits
from tests.sparse_ops.walk import module_of
from tests.tolerance import assert_close
from tir_kernels.cuda import dense_group_norm, group_norm
from tir_kernels.cuda.layer_norm import KEPT
from tir_kernels.cuda.softmax import LONG
from tir_kernels.spec import channel_affine as channel_affine_spec
from tir_kernels.spec import channel_layer_norm as channel_layer_norm_spec
from tir_kernels.spec import dense_group_norm as dense_group_norm_spec
from tir_kernels.spec import group_norm as group_norm_spec
from tir_kernels.spec import layer_norm as layer_norm_spec
from tir_kernels.spec import modulated_add as modulated_add_spec
from tir_kernels.spec import rms_norm_heads as rms_norm_heads_spec
from tir_kernels.spec import softmax as softmax_spec

RNG = np.random.default_rng(0)


def run(call, *inputs):
    """The output of `call` of some arrays, the same under several schedules."""
    device()
    executable = build(module_of(call, inputs, [array.shape for array in inputs]), cuda_target())

    def once():
        machine = relax.VirtualMachine(executable, device(), memory_cfg="naive")
        return machine["main"](*(tvm.runtime.tensor(array, device()) for array in inputs)).numpy()

    return same_bits(once)


@pytest.mark.parametrize("channels", [1, 31, 32, 33, KEPT, KEPT + 1])
def test_layer_norm_of_rows_in_registers_and_in_cache(channels):
    x = features(RNG, 9, channels, dtype="float16")
    weight, bias = features(RNG, channels), features(RNG, channels)
    scale, shift = features(RNG, 1, channels), features(RNG, 1, channels)
    out = run(op.layer_norm, x, weight, bias, scale, shift)
    assert_close(out, layer_norm_spec.naive(x, weight, bias, scale, shift), dtype="float16")


@pytest.mark.parametrize("depth", [1, 32, 33, 1025])
def test_rms_norm_of_heads_in_registers_and_in_cache(depth):
    x, gamma = features(RNG, 3, 5, depth), features(RNG, 5, depth)
    x[1, 2] = 0  # no direction: zeros
    assert_close(run(op.rms_norm_heads, x, gamma), rms_norm_heads_spec.naive(x, gamma), depth, dtype="float32")


@pytest.mark.parametrize("columns", [1, 32, 33, LONG - 1, LONG, LONG + 300])
def test_softmax_of_a_warp_and_of_a_block(columns):
    x = features(RNG, 9, columns) * 20
    x[1], x[2, : columns // 2], x[3, -1], x[4] = -np.inf, -np.inf, np.nan, 1e30
    with np.errstate(invalid="ignore"):
        expected = softmax_spec.naive(x)
    assert_close(run(op.softmax, x), expected, columns, dtype="float32")


@pytest.mark.parametrize("groups", [1, 2, 34])
def test_group_norm_of_several_chunks(groups):
    rows = 2 * group_norm.CHUNK + 3
    x, weight, bias = features(RNG, rows, 34), features(RNG, 34), features(RNG, 34)
    offsets = np.array([0, 0, 2, group_norm.CHUNK + 2, group_norm.CHUNK + 2, rows], "int32")
    out = run(lambda *args: op.group_norm(*args, groups, eps=0.1, activation="gelu"), x, offsets, weight, bias)
    expected = group_norm_spec.naive(x, offsets, weight, bias, groups, 0.1, "gelu")
    assert_close(out, expected, rows * 34 // groups, dtype="float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_large_mean_costs_no_accuracy(dtype):
    """The bound is that of deviations of size 1."""
    x = (features(RNG, 900, 32) + 1000).astype(features(RNG, 0, dtype=dtype).dtype)
    weight, bias = features(RNG, 32), features(RNG, 32)
    offsets = np.array([0, 800, 900], "int32")
    out = run(lambda *args: op.group_norm(*args, 4), x, offsets, weight, bias)
    assert_close(out, group_norm_spec.naive(x, offsets, weight, bias, 4), dtype=dtype)
    dense = np.ascontiguousarray(x.reshape(2, 32, 450))
    out = run(lambda *args: op.dense_group_norm(*args, 4), dense, weight, bias)
    assert_close(out, dense_group_norm_spec.naive(dense, weight, bias, 4), dtype=dtype)


@pytest.mark.parametrize("groups", [1, 3])
def test_dense_group_norm_of_several_chunks(groups):
    sites = dense_group_norm.SITES + 1
    assert 6 // groups * sites > dense_group_norm.CHUNK or groups == 3
    x, weight, bias = features(RNG, 2, 6, sites), features(RNG, 6), features(RNG, 6)
    out = run(lambda *args: op.dense_group_norm(*args, groups), x, weight, bias)
    assert_close(out, dense_group_norm_spec.naive(x, weight, bias, groups), 6 // groups * sites, dtype="float32")


@pytest.mark.parametrize("shape", [(3, 5, 0), (2, 7, 31), (1, 8, 2, 16), (1, 9, 33), (2, 70, 3, 3, 3)])
def test_channels_before_sites(shape):
    x, weight, bias = features(RNG, *shape), features(RNG, shape[1]), features(RNG, shape[1])
    expected = channel_layer_norm_spec.naive(x, weight, bias)
    assert_close(run(op.channel_layer_norm, x, weight, bias), expected, shape[1], dtype="float32")
    expected = channel_affine_spec.naive(x, weight, bias, "relu")
    out = run(lambda *args: op.channel_affine(*args, activation="relu"), x, weight, bias)
    assert_close(out, expected, 2, dtype="float32")


def test_nan_stays_in_its_row():
    x = features(RNG, 5, 40)
    x[2, 7], x[3, 8] = np.nan, np.inf
    ones, zeros = np.ones(40, "float32"), np.zeros(40, "float32")
    out = run(op.layer_norm, x, ones, zeros, zeros[None], zeros[None])
    np.testing.assert_array_equal(np.isnan(out).all(1), [False, False, True, True, False])
    np.testing.assert_array_equal(np.isnan(out).any(1), [False, False, True, True, False])


@pytest.mark.parametrize("rows", [0, 8, 9])
def test_modulated_add_of_batch_elements(rows):
    x, y, gate = features(RNG, rows, 33), features(RNG, rows, 33), features(RNG, 4, 33)
    index = RNG.integers(0, 4, rows).astype("int32")
    out = run(op.modulated_add, x, y, gate, index)
    assert_close(out, modulated_add_spec.naive(x, y, gate, index), 2, dtype="float32")


@pytest.mark.parametrize("index, message", [([0, 2, 5], "row 1 is 2"), ([1, 0, -1], "row 2 is -1")])
def test_a_batch_index_that_does_not_fit_is_named(index, message):
    x, gate = features(RNG, 3, 5), features(RNG, 2, 5)
    index = np.array(index, "int32")
    expected = f"batch_index: {message}, expected 0 to 1"
    with pytest.raises(ValueError, match=expected):
        run(op.modulated_add, x, x, gate, index)
    with pytest.raises(ValueError, match=expected):
        call = lambda x, w, b, s, t, i: op.layer_norm(x, w, b, s, t, batch_index=i)  # noqa: E731
        run(call, x, gate[0], gate[0], gate, gate, index)


@pytest.mark.parametrize(
    "offsets, message",
    [
        ([0, 3], "from 0 to 3, expected offsets from 0 to the 4 rows"),
        ([1, 4], "from 1 to 4, expected offsets from 0 to the 4 rows"),
        ([0, 3, 2, 4], "entry 2 is 2 after 3, expected ascending offsets"),
        ([0, -5, 9, 4], "entry 1 is -5 after 0, expected ascending offsets"),
    ],
)
def test_offsets_that_do_not_fit_are_named(offsets, message):
    x, vector = features(RNG, 4, 2), features(RNG, 2)
    with pytest.raises(ValueError, match=f"batch_offsets: {message}"):
        run(lambda *args: op.group_norm(*args, 2), x, np.array(offsets, "int32"), vector, vector)
