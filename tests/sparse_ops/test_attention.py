"""`attention`: its oracle, depths, lengths around the tiles, huge logits, segments without keys, wrong input."""

import numpy as np
import pytest
import torch
from tvm import relax

from sparse_ops import op
from sparse_ops.build import build
from sparse_ops.registry import features
from tests.sparse_ops.walk import evaluate, module_of, run
from tests.tolerance import assert_close
from tir_kernels.attention import naive

SHAPES = [("n", 2, 20), ("k", 2, 20), ("k", 2, 20), ("b",), ("b",)]


def arguments(q_lengths, k_lengths, heads=2, depth=20, dtype="float32", size=1.0):
    rng = np.random.default_rng(0)
    q, k, v = (features(rng, sum(rows), heads, depth) for rows in (q_lengths, k_lengths, k_lengths))
    q, k, v = ((array * size).astype(features(rng, 0, dtype=dtype).dtype) for array in (q, k, v))
    return q, k, v, *(np.cumsum([0, *lengths]).astype("int32") for lengths in (q_lengths, k_lengths))


def test_oracle_is_dense_attention():
    q, k, v, *offsets = arguments([7, 5], [9, 4])
    out = naive(q, k, v, *offsets, scale=0.3)
    for rows, keys in ((slice(0, 7), slice(0, 9)), (slice(7, 12), slice(9, 13))):
        parts = (torch.from_numpy(part).double().transpose(0, 1) for part in (q[rows], k[keys], v[keys]))
        expected = torch.nn.functional.scaled_dot_product_attention(*parts, scale=0.3)
        np.testing.assert_allclose(out[rows], expected.transpose(0, 1).numpy(), atol=1e-12)


def test_lengths_around_the_tiles():
    """Tiles are of 128 queries and 96 keys; groups within them of 6 or 12 keys and 8 to 32 queries."""
    executable = build(module_of(op.attention, arguments([1], [1]), SHAPES))
    for q_lengths, k_lengths in (
        ([127, 128, 129], [95, 96, 97]),
        ([1, 0, 300, 3], [1, 50, 193, 0]),
        ([0, 0], [0, 3]),
        ([33, 2, 17, 16, 15], [11, 12, 13, 5, 700]),
    ):
        args = arguments(q_lengths, k_lengths)
        (out,) = run(executable, args)
        assert_close(out, naive(*args), max(k_lengths), dtype="float32")
    assert not run(executable, arguments([4, 4], [0, 0]))[0].any()  # no keys: zeros


@pytest.mark.parametrize("depth", [1, 8, 31, 64, 128])
def test_depths(depth):
    args = arguments([40], [100], depth=depth)
    out = evaluate(lambda *args: op.attention(*args, scale=0.7 / depth), *args)
    assert_close(out, naive(*args, scale=0.7 / depth), 100, dtype="float32")


def test_huge_logits():
    """Logits of 10^6 and more: nearly all of the weight falls on one key, and nothing overflows."""
    q, k, v, *offsets = arguments([30], [200], size=300.0)
    k[:, :, 0] += np.arange(200)[:, None] * 50  # far apart, so that float32 logits agree on the largest
    out = evaluate(op.attention, q, k, v, *offsets)
    assert np.isfinite(out).all()
    logits = np.sort(np.einsum("ihd,jhd->ihj", q.astype("float64"), k.astype("float64")) / np.sqrt(20), -1)
    clear = logits[..., -1] - logits[..., -2] > 100
    assert clear.mean() > 0.9
    assert_close(out[clear], naive(q, k, v, *offsets)[clear], dtype="float32")


@pytest.mark.parametrize(
    "position, offsets, message",
    [
        (3, [0, 2, 4], "q_offsets: from 0 to 4, expected offsets from 0 to the 5 rows"),
        (3, [0, 6, 5], "q_offsets: entry 2 is 5 after 6, expected ascending offsets"),
        (4, [0, 3, 8], "k_offsets: from 0 to 8, expected offsets from 0 to the 7 rows"),
        (4, [0, -1, 7], "k_offsets: entry 1 is -1 after 0, expected ascending offsets"),
    ],
)
def test_offsets_that_do_not_fit_are_named(position, offsets, message):
    args = list(arguments([3, 2], [3, 4]))
    args[position] = np.array(offsets, "int32")
    with pytest.raises(ValueError, match=message):
        evaluate(op.attention, *args, shapes=SHAPES)


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
