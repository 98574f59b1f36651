"""`attention`: its oracle, depths, lengths around the tiles, orders, huge logits, segments without keys, wrong input."""

from functools import cache

import numpy as np
import pytest
import torch
import tvm
from tvm import relax
from tvm.script import tirx as T

from sparse_ops import op
from sparse_ops.build import build
from sparse_ops.testing.examples import features
from sparse_ops.transform.memory import planned_memory
from tests.instruction_sets import ISAS
from tests.sparse_ops.walk import evaluate, module_of, run, run_with
from tests.tolerance import assert_close
from tir_kernels.cpu.attention import EXP2, EXP2_SHORT, FEW, FEW_QUERIES, KEYS, PART, QUERIES, exp2, pack_ir
from tir_kernels.cpu.isa import Isa, forced_isa
from tir_kernels.dispatch import host_target
from tir_kernels.spec.attention import naive

SHAPES = [("n", 2, 20), ("k", 2, 20), ("k", 2, 20), ("b",), ("b",)]


def arguments(q_lengths, k_lengths, heads=2, depth=20, dtype="float32", size=1.0):
    rng = np.random.default_rng(0)
    q, k, v = (features(rng, sum(rows), heads, depth) for rows in (q_lengths, k_lengths, k_lengths))
    q, k, v = ((array * size).astype(features(rng, 0, dtype=dtype).dtype) for array in (q, k, v))
    return q, k, v, *(np.cumsum([0, *lengths]).astype("int32") for lengths in (q_lengths, k_lengths))


@cache
def executable(isa: Isa) -> tvm.runtime.Executable:
    """Attention of float32 and any lengths, compiled."""
    with forced_isa(isa):
        return build(module_of(op.attention, arguments([1], [1]), SHAPES))


def attend(*args):
    (out,) = run(executable(Isa.of()), args)
    return out


def test_oracle_is_dense_attention():
    q, k, v, *offsets = arguments([7, 5], [9, 4])
    out = naive(q, k, v, *offsets, scale=0.3)
    for rows, keys in ((slice(0, 7), slice(0, 9)), (slice(7, 12), slice(9, 13))):
        parts = (torch.from_numpy(part).double().transpose(0, 1) for part in (q[rows], k[keys], v[keys]))
        expected = torch.nn.functional.scaled_dot_product_attention(*parts, scale=0.3)
        np.testing.assert_allclose(out[rows], expected.transpose(0, 1).numpy(), atol=1e-12)


def test_lengths_around_the_tiles(isa_of_float32):
    """Tiles are of 480 queries, in blocks of 24, and 128 keys; groups within them of 3 or 6 queries and 4 to 64 keys."""
    for q_lengths, k_lengths in (
        ([479, 480, 481], [127, 128, 129]),
        ([1, 0, 300, 3], [1, 50, 257, 0]),
        ([0, 0], [0, 3]),
        ([33, 2, 24, 25, 23, 5, 6, 7], [15, 16, 17, 5, 700, 8, 7, 9]),
    ):
        args = arguments(q_lengths, k_lengths)
        assert_close(attend(*args), naive(*args), max(k_lengths), dtype="float32")
    assert not attend(*arguments([4, 4], [0, 0])).any()  # no keys: zeros


@cache
def of_many_heads(isa: Isa) -> tvm.runtime.Executable:
    """Attention of 17 heads of 8 channels and any lengths."""
    shapes = [("n", 17, 8), ("k", 17, 8), ("k", 17, 8), ("b",), ("b",)]
    with forced_isa(isa):
        return build(module_of(op.attention, arguments([1], [1], heads=17, depth=8), shapes))


def test_bits_do_not_depend_on_how_work_is_divided():
    """Calls with few tasks divide the keys among them, those with many queries share packed keys: the sums are the same."""
    q, k, v, q_offsets, k_offsets = arguments([5, 960], [1200, 2 * PART + KEYS], heads=17, depth=8)
    assert (len(q) // QUERIES + 3) * 17 > FEW and len(q) < 4 * QUERIES  # whole keys in each task, which packs its own
    sample = np.r_[0, 3, 5, 484, 485, 964]
    together = run(of_many_heads(Isa.of()), [q, k, v, q_offsets, k_offsets])[0][sample]
    offsets = np.array([0, 2, 6], "int32")
    assert_close(together, naive(q[sample], k, v, offsets, k_offsets), 2 * PART + KEYS, dtype="float32")
    for threads in (1, 2):
        (few,) = run_with(threads, of_many_heads(Isa.of()), [q[sample], k, v, offsets, k_offsets])  # parts of keys
        np.testing.assert_array_equal(few, together)
    alone = [q[5:], k[1200:], v[1200:], *(np.array([0, n], "int32") for n in (960, 2 * PART + KEYS))]
    (shared,) = run(of_many_heads(Isa.of()), alone)
    np.testing.assert_array_equal(shared[sample[2:] - 5], together[2:])


def test_scratch_is_no_matrix_of_all_pairs():
    """What parts of keys leave to be merged, besides packed keys and values, takes a few times their memory at most."""
    heads, depth = 1, 64
    shapes = [("n", heads, depth), ("k", heads, depth), ("k", heads, depth), ("b",), ("b",)]
    with planned_memory() as plan:
        build(module_of(op.attention, arguments([1], [1], heads, depth), shapes))
    for queries in (4, FEW_QUERIES * PART, FEW_QUERIES * PART + 1, 20_000):
        taken = plan.of("main", n=queries, k=1 << 15, b=2).workspace
        assert taken < 5 * (2 * 4 * (1 << 15) * heads * depth), queries


def test_packed_pairs_are_rounded_as_the_instruction_does():
    bits = [0, 1, 0x7FFFFF, 0x800000, 0x3F808000, 0x3F818000, 0x3F80FFFF, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FFFFFFF]
    x = np.array(bits + [0x80000000 | b for b in bits] + [0x3F800000] * 10, "uint32")
    isa = ISAS["avx512bf16_emulated"]

    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((32,), "float32"), y: T.Buffer((16,), "int32")):
        T.attr(T.int32(0), "pragma_import_llvm", pack_ir(isa))
        y[T.Ramp(0, 1, 16)] = T.call_pure_extern("int32x16", "pack_bf16_pairs", x[T.Ramp(0, 1, 16)], x[T.Ramp(16, 1, 16)])

    y = tvm.runtime.tensor(np.zeros(16, "int32"))
    tvm.compile(tvm.IRModule({"main": kernel}), target=host_target())["main"](tvm.runtime.tensor(x.view("float32")), y)
    expected = [0, 0, 0, 0x80, 0x3F80, 0x3F82, 0x3F81, 0x7F80, 0x7F80, 0x7FC0, 0x7FFF]
    expected = np.array(expected + [0x8000 | half for half in expected] + [0x3F80] * 10, "uint16")
    np.testing.assert_array_equal(y.numpy().view("uint16"), expected)


@pytest.mark.parametrize("depth", [1, 16, 31, 64, 100, 128])
def test_depths(depth):
    args = arguments([40], [100], depth=depth)
    out = evaluate(lambda *args: op.attention(*args, scale=0.7 / depth), *args)
    assert_close(out, naive(*args, scale=0.7 / depth), 100, dtype="float32")


def test_huge_logits():
    """Logits of 10^6 and more: nearly all of the weight falls on one key, and nothing overflows."""
    q, k, v, *offsets = arguments([30], [200], size=300.0)
    k[:, :, 0] += np.arange(200)[:, None] * 50  # far apart, so that float32 logits agree on the largest
    out = attend(q, k, v, *offsets)
    assert np.isfinite(out).all()
    logits = np.sort(np.einsum("ihd,jhd->ihj", q.astype("float64"), k.astype("float64")) / np.sqrt(20), -1)
    clear = logits[..., -1] - logits[..., -2] > 100
    assert clear.mean() > 0.9
    assert_close(out[clear], naive(q, k, v, *offsets)[clear], dtype="float32")


@pytest.mark.parametrize("size", [1e3, 1e15])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_logits_of_one_sign(size, sign):
    """Equal logits of either sign, up to 10^31: the mean of the values. Their distance to the start must not overflow."""
    q, k, v, *offsets = arguments([5], [300])
    q[:], k[:] = size, sign * size
    assert_close(attend(q, k, v, *offsets), naive(q, k, v, *offsets), 300, dtype="float32")


def test_nan_reaches_the_queries_that_see_it():
    q, k, v, *offsets = arguments([4, 3], [200, 20])
    q[1], k[205], v[210, :, 0] = np.nan, np.nan, np.nan
    seen = np.isnan(attend(q, k, v, *offsets)).all((1, 2))
    np.testing.assert_array_equal(seen, [False, True, False, False, True, True, True])


@pytest.mark.parametrize("keys", [1, 40, PART + KEYS])  # the last ones in two parts
def test_no_logit_above_minus_infinity(keys):
    """NaN, as exp(-inf + inf) is; where one logit is finite, its value."""
    q, k, v, *offsets = arguments([3, 2], [keys, keys + 1])
    q[:], k[:, :, 0] = 1, -np.inf
    k[-1] = 1
    out = attend(q, k, v, *offsets)
    assert np.isnan(out[:3]).all()
    assert_close(out[3:], np.broadcast_to(v[-1], (2, *v.shape[1:])), dtype="float32")


@pytest.mark.parametrize("coefficients, bound", [(EXP2, 3e-7), (EXP2_SHORT, 8e-5)], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("target", [host_target(), tvm.target.Target({"kind": "llvm"})], ids=["host", "baseline"])
def test_exp2(target, coefficients, bound):
    x = np.concatenate([np.linspace(-125, 0, 200_000), -np.logspace(-30, 0, 100)]).astype("float32")

    @T.prim_func(s_tir=True)
    def kernel(x: T.Buffer((200_100,), "float32"), y: T.Buffer((200_100,), "float32")):
        for i in range(200_100):
            y[i] = exp2(x[i] * T.float32(4), 0.25, coefficients)

    y = tvm.runtime.tensor(np.zeros_like(x))
    tvm.compile(tvm.IRModule({"main": kernel}), target=target)["main"](tvm.runtime.tensor(x), y)
    error = y.numpy() / np.exp2(x.astype("float64")) - 1
    assert np.abs(error).max() < bound


@pytest.mark.parametrize("given", [("q_order",), ("k_order",), ("q_order", "k_order")], ids="-".join)
def test_orders_are_rows_gathered_before_and_scattered_after(given):
    """Bit for bit, with keys that several segments share and keys that none has."""
    q, k, v, *offsets = arguments([30, 1, 0, 200], [150, 1, 7, 60])
    rng = np.random.default_rng(1)
    orders = {"q_order": rng.permutation(len(q)), "k_order": rng.integers(0, len(k) // 2, len(k))}
    orders = {name: orders[name].astype("int32") for name in given}
    rows, keys = (orders.get(name, np.arange(len(x))) for name, x in (("q_order", q), ("k_order", k)))
    out = evaluate(
        lambda *args: op.attention(*args[:5], **dict(zip(given, args[5:], strict=True))), q, k, v, *offsets, *orders.values()
    )
    np.testing.assert_array_equal(out[rows], attend(q[rows], k[keys], v[keys], *offsets))
    assert_close(out, naive(q, k, v, *offsets, **orders), 150, dtype="float32")


ORDERS_THAT_DO_NOT_FIT = pytest.mark.parametrize(
    "name, order, message",
    [
        ("q_order", [0, 4, 2, 3, 5], "q_order: entry 4 is 5, expected a row from 0 to 4"),
        ("q_order", [0, 1, -1, 3, -2], "q_order: entry 2 is -1, expected a row from 0 to 4"),
        ("q_order", [0, 4, 2, 4, 3], "q_order: entry 3 is row 4 again, expected every row once"),
        ("k_order", [6, 6, 7, 0, 1, 2, 3], "k_order: entry 2 is 7, expected a row from 0 to 6"),
        ("k_order", [0, 1, 2], "k_offsets: from 0 to 7, expected offsets from 0 to the 3 rows"),
    ],
)
OFFSETS_THAT_DO_NOT_FIT = pytest.mark.parametrize(
    "position, offsets, message",
    [
        (3, [0, 2, 4], "q_offsets: from 0 to 4, expected offsets from 0 to the 5 rows"),
        (3, [0, 6, 5], "q_offsets: entry 2 is 5 after 6, expected ascending offsets"),
        (4, [0, 3, 8], "k_offsets: from 0 to 8, expected offsets from 0 to the 7 rows"),
        (4, [0, -1, 7], "k_offsets: entry 1 is -1 after 0, expected ascending offsets"),
    ],
)


@ORDERS_THAT_DO_NOT_FIT
def test_orders_that_do_not_fit_are_named(name, order, message):
    args = [*arguments([3, 2], [3, 4]), np.array(order, "int32")]
    with pytest.raises(ValueError, match=message):
        evaluate(lambda *args: op.attention(*args[:5], **{name: args[5]}), *args)


def test_an_order_of_too_few_queries_is_named():
    args = [relax.Var(f"a{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(arguments([3, 2], [3, 4]))]
    order = relax.Var("order", relax.TensorType([4], "int32"))
    with pytest.raises(ValueError, match=r"sparse_ops\.attention: q_order: expected \[5\] of int32"):
        relax.BlockBuilder().normalize(op.attention(*args, q_order=order))


@OFFSETS_THAT_DO_NOT_FIT
def test_offsets_that_do_not_fit_are_named(position, offsets, message):
    args = list(arguments([3, 2], [3, 4]))
    args[position] = np.array(offsets, "int32")
    with pytest.raises(ValueError, match=message):
        attend(*args)


@pytest.mark.parametrize(
    "position, shape, dtype, message",
    [
        (1, [7, 2, 21], "float32", "k: expected \\[any, 2, 20\\] of float32"),
        (1, [7, 2, 20], "bfloat16", "k: expected \\[any, 2, 20\\] of float32"),
        (2, [8, 2, 20], "float32", "v: expected \\[7, 2, 20\\] of float32"),
        (4, [4], "int32", "k_offsets: expected \\[3\\] of int32"),
    ],
)
def test_wrong_shapes_are_named(position, shape, dtype, message):
    args = [relax.Var(f"a{i}", relax.TensorType(a.shape, str(a.dtype))) for i, a in enumerate(arguments([3, 2], [3, 4]))]
    args[position] = relax.Var("wrong", relax.TensorType(shape, dtype))
    with pytest.raises(ValueError, match=rf"sparse_ops\.attention: {message}"):
        relax.BlockBuilder().normalize(op.attention(*args))


@pytest.mark.parametrize("scale", [0, -1.0, float("inf"), float("nan"), "1"])
def test_a_wrong_scale_is_named(scale):
    with pytest.raises(ValueError, match=r"sparse_ops\.attention: scale: expected a number above 0"):
        op.attention(*[None] * 5, scale=scale)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_depth_0(dtype):
    """Nothing to compute: the result has no elements; offsets are checked all the same."""
    args = arguments([3, 0, 4], [2, 5, 0], depth=0, dtype=dtype)
    assert evaluate(op.attention, *args).shape == (7, 2, 0)
    bad = args[3] + np.array([0, 0, 0, 1], "int32")
    with pytest.raises(ValueError, match="q_offsets: from 0 to 8, expected offsets from 0 to the 7 rows"):
        evaluate(op.attention, *args[:3], bad, args[4])
