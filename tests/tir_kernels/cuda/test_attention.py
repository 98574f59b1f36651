"""Attention on the emulated CUDA device: lengths around tiles, depths, parts of keys, orders, extreme values, wrong input."""

from functools import cache

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.script import tirx as T

from sparse_ops import op
from sparse_ops.build import build
from sparse_ops.testing.examples import features
from tests.cuda_device import cuda_target, device
from tests.cuda_emulator import same_bits
from tests.sparse_ops.test_attention import OFFSETS_THAT_DO_NOT_FIT, ORDERS_THAT_DO_NOT_FIT
from tests.sparse_ops.walk import module_of
from tests.tolerance import assert_close
from tir_kernels.cuda import attention
from tir_kernels.cuda.attention import FEW, PART, tile_for
from tir_kernels.spec.attention import naive

DTYPES = ["float16", "bfloat16", "float32"]


def arguments(q_lengths, k_lengths, heads=1, depth=20, dtype="float32", size=1.0):
    rng = np.random.default_rng(0)
    q, k, v = (features(rng, sum(rows), heads, depth) for rows in (q_lengths, k_lengths, k_lengths))
    q, k, v = ((array * size).astype(features(rng, 0, dtype=dtype).dtype) for array in (q, k, v))
    return q, k, v, *(np.cumsum([0, *lengths]).astype("int32") for lengths in (q_lengths, k_lengths))


@cache
def executable(heads: int, depth: int, dtype: str, given: tuple[str, ...] = ()) -> tvm.runtime.Executable:
    """Attention of any lengths, compiled."""
    device()
    args = arguments([1], [1], heads, depth, dtype)
    orders = [np.zeros(1, "int32")] * len(given)
    shapes = [("n", heads, depth), ("k", heads, depth), ("k", heads, depth), ("b",), ("b",)]
    shapes += [("n",) if name == "q_order" else ("m",) for name in given]
    call = lambda *args: op.attention(*args[:5], **dict(zip(given, args[5:], strict=True)))  # noqa: E731
    return build(module_of(call, [*args, *orders], shapes), cuda_target())


def run(compiled, *args):
    machine = relax.VirtualMachine(compiled, device(), memory_cfg="naive")
    return machine["main"](*(tvm.runtime.tensor(array, device()) for array in args)).numpy()


def attend(*args, **orders):
    q = args[0]
    return run(executable(q.shape[1], q.shape[2], str(q.dtype), tuple(orders)), *args, *orders.values())


def check(out, args, keys, **orders):
    dtype = args[0].dtype
    assert_close(out, naive(*args, **orders), keys if dtype == "float32" else 1, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lengths_around_the_tiles(dtype):
    tile = tile_for(20, dtype)
    for q_lengths, k_lengths in (
        ([tile.queries - 1, tile.queries, tile.queries + 1], [tile.keys - 1, tile.keys, tile.keys + 1]),
        ([1, 0, 2 * tile.queries + 3, 3], [1, 50, 3 * tile.keys, 0]),
        ([0, 0], [0, 3]),
        ([15, 16, 17, 31, 33], [7, 8, 9, 2 * tile.keys - 1, 2]),
    ):
        args = arguments(q_lengths, k_lengths, dtype=dtype)
        check(attend(*args), args, max(k_lengths))
    assert not attend(*arguments([4, 4], [0, 0], dtype=dtype)).any()  # no keys: zeros


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("depth", [1, 31, 56, 100, 128, 150])
def test_depths(depth, dtype):
    """In chunks and by elements, padded and not, and deeper than tiles."""
    args = arguments([20], [70], 2, depth, dtype)
    check(attend(*args), args, max(70, depth))


@pytest.mark.parametrize("dtype", DTYPES)
def test_few_queries_see_many_keys_in_parts(dtype):
    """Parts are of one segment's numbers: alone it has the same bits. Two schedules agree."""
    keys = 2 * PART + 77
    q, k, v, *_ = args = arguments([3, 2, 5], [40, keys, 2 * PART - 1], 2, 16, dtype)
    device()
    out = same_bits(lambda: attend(*args))
    check(out, args, keys)
    alone = attend(q[3:5], k[40 : 40 + keys], v[40 : 40 + keys], *(np.array([0, n], "int32") for n in (2, keys)))
    np.testing.assert_array_equal(alone, out[3:5])


def test_many_queries_see_many_keys_whole():
    """As many blocks as there are from which on keys are not cut."""
    heads = FEW // 2
    args = arguments([tile_for(8, "float16").queries + 1], [2 * PART], heads, 8, "float16")
    sample = [0, heads - 1]
    out = attend(*args)[:, sample]
    assert_close(out, naive(*(array[:, sample] for array in args[:3]), *args[3:]), dtype="float16")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("given", [("q_order",), ("k_order",), ("q_order", "k_order")], ids="-".join)
def test_orders_are_rows_gathered_before_and_scattered_after(given, dtype):
    """Bit for bit, with keys that several segments share and keys that none has."""
    q, k, v, *offsets = arguments([30, 1, 0, 70], [90, 1, 7, 40], dtype=dtype, depth=16)
    rng = np.random.default_rng(1)
    orders = {"q_order": rng.permutation(len(q)), "k_order": rng.integers(0, len(k) // 2, len(k))}
    orders = {name: orders[name].astype("int32") for name in given}
    rows, keys = (orders.get(name, np.arange(len(x))) for name, x in (("q_order", q), ("k_order", k)))
    out = attend(q, k, v, *offsets, **orders)
    np.testing.assert_array_equal(out[rows], attend(q[rows], k[keys], v[keys], *offsets))
    check(out, (q, k, v, *offsets), 90, **orders)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_that_are_not_aligned(dtype, monkeypatch):
    """Keys and values that do not begin at 16 bytes are copied by elements, with the same bits."""
    args = arguments([9], [80], 1, 16, dtype)
    out = attend(*args)
    attention.attention.cache_clear()
    monkeypatch.setattr(attention, "aligned", lambda k, v: T.int32(0))
    compiled = build(module_of(op.attention, args, [array.shape for array in args]), cuda_target())
    attention.attention.cache_clear()
    np.testing.assert_array_equal(run(compiled, *args), out)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_reaches_the_queries_that_see_it(dtype):
    q, k, v, *offsets = arguments([4, 3], [200, 20], dtype=dtype)
    q[1], k[205], v[210, :, 0] = np.nan, np.nan, np.nan
    seen = np.isnan(attend(q, k, v, *offsets)).all((1, 2))
    np.testing.assert_array_equal(seen, [False, True, False, False, True, True, True])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("keys", [1, 40, 2 * PART + 1])  # the last ones in parts
def test_no_logit_above_minus_infinity(keys, dtype):
    """NaN, as exp(-inf + inf) is; where one logit is finite, its value."""
    q, k, v, *offsets = arguments([3, 2], [keys, keys + 1], dtype=dtype)
    q[:], k[:, :, 0] = 1, -np.inf
    k[-1] = 1
    out = attend(q, k, v, *offsets)
    assert np.isnan(out[:3]).all()
    assert_close(out[3:], np.broadcast_to(v[-1], (2, *v.shape[1:])), dtype=dtype)


@pytest.mark.parametrize("size", [1e3, 1e15])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_logits_of_one_sign(size, sign):
    """Equal logits of either sign, up to 10^31: the mean of the values. Their distance to the start must not overflow."""
    for dtype in ("float32", "bfloat16"):
        q, k, v, *offsets = arguments([5], [300], dtype=dtype)
        q[:], k[:] = size, sign * size
        check(attend(q, k, v, *offsets), (q, k, v, *offsets), 300)


@ORDERS_THAT_DO_NOT_FIT
def test_orders_that_do_not_fit_are_named(name, order, message):
    with pytest.raises(ValueError, match=message):
        attend(*arguments([3, 2], [3, 4]), **{name: np.array(order, "int32")})


@OFFSETS_THAT_DO_NOT_FIT
def test_offsets_that_do_not_fit_are_named(position, offsets, message):
    args = list(arguments([3, 2], [3, 4]))
    args[position] = np.array(offsets, "int32")
    with pytest.raises(ValueError, match=message):
        attend(*args)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_depth_0(dtype):
    """Nothing to compute: the result has no elements; offsets are checked all the same."""
    args = arguments([3, 0, 4], [2, 5, 0], depth=0, dtype=dtype)
    assert attend(*args).shape == (7, 1, 0)
    with pytest.raises(ValueError, match="q_offsets: from 0 to 8, expected offsets from 0 to the 7 rows"):
        attend(*args[:3], args[3] + np.array([0, 0, 0, 1], "int32"), args[4])


def test_many_segments():
    """More segments than the planning block has threads, most of them short or empty."""
    rng = np.random.default_rng(2)
    q_lengths, k_lengths = rng.integers(0, 2, 1100), rng.integers(0, 3, 1100)
    args = arguments(q_lengths, k_lengths, 1, 8, "float16")
    check(attend(*args), args, 2)
