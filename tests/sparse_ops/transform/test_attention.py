"""`RecognizeAttention`: every way of writing attention out, and what must stay as it is."""

from math import sqrt

import numpy as np
import pytest
from tvm import relax

from sparse_ops.transform import RecognizeAttention, SimplifyLayout
from tests.sparse_ops.transform.graphs import arrays, calls, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.tolerance import assert_close

R = relax.op
B, N, M, H, D = 2, 5, 7, 3, 4
SHAPES = [(B, N, H, D), (B, M, H, D), (B, M, H, D)]


def recognized(mod):
    return SimplifyLayout()(RecognizeAttention()(SimplifyLayout()(mod)))


def const(value):
    return relax.const(value, "float32")


def emit(expr):
    return relax.BlockBuilder.current().emit(expr)


def heads_first(x):
    return R.permute_dims(x, [0, 2, 1, 3])


def swapped(x):
    """The last two axes exchanged, of a tensor of rank 4."""
    return R.permute_dims(x, [0, 1, 3, 2])


def plain(q, k, v, scale=lambda scores: R.divide(scores, const(2.0)), weights=lambda p: p):
    q, k, v = map(heads_first, (q, k, v))
    return heads_first(R.matmul(weights(R.nn.softmax(scale(R.matmul(q, swapped(k))), axis=-1)), v))


def flat(q, k, v):
    """With batch and heads as one axis, as torch imports matmul."""
    q, k, v = map(heads_first, (q, k, v))
    flat = [R.reshape(x, (B * H, *shape)) for x, shape in ((q, (N, D)), (swapped(k), (D, M)), (v, (M, D)))]
    scores = R.reshape(R.matmul(*flat[:2]), (B, H, N, M))
    weights = R.reshape(R.nn.softmax(scores, axis=3), (B * H, N, M))
    return heads_first(R.reshape(R.matmul(weights, flat[2]), (B, H, N, D)))


def guarded(q, k, v, zeros=0.0, nots=2):
    """As torch decomposes `scaled_dot_product_attention`: rows without a finite score give 0."""
    q, k, v = map(heads_first, (q, k, v))
    root = const(sqrt(0.5))
    scores = emit(R.matmul(R.multiply(q, root), R.multiply(swapped(k), root)))
    weights = emit(R.nn.softmax(scores, axis=-1))
    finite = R.astype(R.logical_not(R.equal(scores, const(-np.inf))), "int8")
    mask = R.astype(R.max(finite, [-1], keepdims=True), "bool")
    mask = R.logical_not(mask) if nots == 2 else mask
    return heads_first(R.matmul(R.where(mask, R.full_like(weights, const(zeros)), weights), v))


WAYS = {
    "scaled scores": plain,
    "scaled queries": lambda q, k, v: plain(R.multiply(const(0.5), q), k, v, lambda scores: scores),
    "no scale": lambda q, k, v: plain(q, k, v, lambda scores: scores),
    "batch and heads in one axis": flat,
    "as torch decomposes it": guarded,
    "one op": lambda q, k, v: R.nn.attention(q, k, v, scale=0.3),
    "one op, scale left out": R.nn.attention,
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way(way):
    before = graph(WAYS[way], *SHAPES)
    after = recognized(before)
    assert set(ops(after)) == {"reshape", "multiples", "sparse_ops.attention"}  # nothing is transposed
    given = arrays(*SHAPES)
    assert_close(interpret(after, *given), interpret(before, *given), depth=M, dtype="float32")


def test_symbolic_sizes_leave_no_matrix_of_pairs():
    before = graph(plain, ("b", "n", H, D), ("b", "m", H, D), ("b", "m", H, D))
    assert any("m" in dims and "n" in dims for dims in names_of_dims(before))
    after = recognized(before)
    assert ops(after).count("sparse_ops.attention") == 1 and "matmul" not in ops(after)
    assert not any("m" in dims and "n" in dims for dims in names_of_dims(after))


def names_of_dims(mod):
    """For each tensor of `main` the names in its shape."""
    values = (binding.value for block in mod["main"].body.blocks for binding in block.bindings)
    return [str(value.ty.shape) for value in values]


def test_heads_before_rows_in_memory():
    """Then each head is a batch element of its own, and nothing has to be transposed either."""

    def call(q, k, v):
        return R.matmul(R.nn.softmax(R.matmul(q, swapped(k)), axis=-1), v)

    shapes = [(B, H, N, D), (B, H, M, D), (B, H, M, D)]
    before = graph(call, *shapes)
    after = recognized(before)
    assert set(ops(after)) == {"reshape", "multiples", "sparse_ops.attention"}
    assert calls(after, "sparse_ops.attention")[0].args[0].ty.shape.values[1] == 1
    given = arrays(*shapes)
    assert_close(interpret(after, *given), interpret(before, *given), depth=M, dtype="float32")


def test_one_batch_element():
    """Its transpositions move an axis of size 1 and disappear as reshapes do; the heads stay heads."""
    shapes = [(1, N, H, D), (1, M, H, D), (1, M, H, D)]
    before = graph(plain, *shapes)
    after = recognized(before)
    assert "permute_dims" not in ops(after)
    assert calls(after, "sparse_ops.attention")[0].args[0].ty.shape.values[1] == H
    given = arrays(*shapes)
    assert_close(interpret(after, *given), interpret(before, *given), depth=M, dtype="float32")


def with_weights(q, k, v):
    """The weights are a result too."""
    weights = emit(R.nn.softmax(R.matmul(heads_first(q), swapped(heads_first(k))), axis=-1))
    return relax.Tuple([emit(R.matmul(weights, heads_first(v))), weights])


def masked(q, k, v):
    return plain(q, k, v, lambda scores: R.add(scores, const(np.zeros((N, M), "float32"))))


KEPT = {
    "weights that are read": with_weights,
    "a mask": masked,
    "a negative scale": lambda q, k, v: plain(q, k, v, lambda scores: R.multiply(scores, const(-1.0))),
    "a factor behind the softmax": lambda q, k, v: plain(q, k, v, weights=lambda p: R.multiply(p, const(2.0))),
    "softmax over queries": lambda q, k, v: heads_first(
        R.matmul(R.nn.softmax(R.matmul(heads_first(q), swapped(heads_first(k))), axis=2), heads_first(v))
    ),
    "a guard that is not 0": lambda q, k, v: guarded(q, k, v, zeros=1.0),
    "a guard the other way round": lambda q, k, v: guarded(q, k, v, nots=1),
    "causal": lambda q, k, v: R.nn.attention(q, k, v, causal_mask="TopLeft"),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case):
    after = recognized(graph(KEPT[case], *SHAPES))
    assert "sparse_ops.attention" not in ops(after)
    assert {"matmul", "nn.attention"} & set(ops(after))
