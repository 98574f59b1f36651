"""`RecognizeLinear`: forms of a matrix product, what it takes in, and in which order."""

import numpy as np
import pytest
from tvm import relax

from sparse_ops.transform import RecognizeLinear, SimplifyLayout
from tests.sparse_ops.transform.graphs import arguments, arrays, calls, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.tolerance import assert_close

R = relax.op
X, W = (2, 3, 8), (6, 8)


def emit(expr):
    return relax.BlockBuilder.current().emit(expr)


def product(x, w):
    return R.matmul(x, R.permute_dims(w))


def check(before, *shapes):
    """The module after the pass; it computes the same."""
    after = SimplifyLayout()(RecognizeLinear()(SimplifyLayout()(before)))
    given = arrays(*shapes)
    assert_close(interpret(after, *given), interpret(before, *given), depth=16, dtype="float32")
    return after


PRODUCTS = {
    "rows": (product, (5, 8), W),
    "a batch": (product, X, W),
    "many axes": (product, (2, 3, 2, 8), W),
    "a weight that is not transposed": (R.matmul, X, (8, 6)),
    "a weight repeated over the batch": (
        lambda x, w: R.matmul(x, R.broadcast_to(R.permute_dims(w), (2, 8, 6))),
        X,
        W,
    ),
}


@pytest.mark.parametrize("case", PRODUCTS)
def test_products(case):
    call, *shapes = PRODUCTS[case]
    after = check(graph(call, *shapes), *shapes)
    assert set(ops(after)) <= {"reshape", "permute_dims", "sparse_ops.linear"} and "sparse_ops.linear" in ops(after)


BEHIND = {  # what follows, shapes of further inputs, optional arguments of the call, its activation
    "bias": (lambda y, b: R.add(y, b), [(6,)], {"bias"}, "none"),
    "bias first": (lambda y, b: R.add(b, y), [(1, 1, 6)], {"bias"}, "none"),
    "gate of a channel": (lambda y, g: R.multiply(y, g), [(6,)], {"gate"}, "none"),
    "gate of a batch element": (lambda y, g: R.multiply(g, y), [(2, 1, 6)], {"gate", "batch_index"}, "none"),
    "residual": (lambda y, r: R.add(r, y), [(2, 3, 6)], {"residual"}, "none"),
    "activation": (lambda y: R.nn.gelu(y), [], set(), "gelu"),
    "all": (
        lambda y, b, g, r: R.nn.relu(R.add(R.multiply(R.add(y, b), g), r)),
        [(6,), (2, 1, 6), (2, 3, 6)],
        {"bias", "gate", "batch_index", "residual"},
        "relu",
    ),
    "through a reshape": (
        lambda y, b: R.nn.silu(R.reshape(R.add(R.reshape(y, (6, 6)), b), (2, 3, 6))),
        [(6,)],
        {"bias"},
        "silu",
    ),
}


@pytest.mark.parametrize("case", BEHIND)
def test_what_follows(case):
    follow, shapes, names, activation = BEHIND[case]
    after = check(graph(lambda x, w, *rest: follow(product(x, w), *rest), X, W, *shapes), X, W, *shapes)
    assert set(ops(after)) <= {"reshape", "sparse_ops.linear", "batch_index"}
    (call,) = calls(after, "sparse_ops.linear")
    assert arguments(call) == names and call.attrs["activation"] == activation


BESIDE = {  # what follows, shapes of further inputs, ops that stay
    "a bias behind a gate": (lambda y, g, b: R.add(R.multiply(y, g), b), [(6,), (6,)], ["add"]),
    "a gate behind a residual": (lambda y, r, g: R.multiply(R.add(y, r), g), [(2, 3, 6), (6,)], ["multiply"]),
    "anything behind an activation": (lambda y, b: R.add(R.nn.relu(y), b), [(6,)], ["add"]),
    "a factor of a row": (lambda y, g: R.multiply(y, g), [(2, 3, 1)], ["multiply"]),
    "a residual that is broadcast": (lambda y, r: R.add(y, r), [(3, 6)], ["add"]),
    "a sum larger than the product": (lambda y, r: R.add(y, r), [(2, 2, 3, 6)], ["add"]),
}


@pytest.mark.parametrize("case", BESIDE)
def test_what_does_not_belong(case):
    follow, shapes, kept = BESIDE[case]
    after = check(graph(lambda x, w, *rest: follow(product(x, w), *rest), X, W, *shapes), X, W, *shapes)
    assert [name for name in ops(after) if name not in ("reshape", "sparse_ops.linear")] == kept


def test_a_value_that_is_read_twice():
    """Then its readers take nothing in, as the product would be made twice."""

    def call(x, w, b):
        y = emit(R.add(product(x, w), b))
        return relax.Tuple([emit(R.nn.relu(y)), emit(R.nn.silu(y))])

    before = graph(call, X, W, (6,))
    after = RecognizeLinear()(SimplifyLayout()(before))
    assert ops(after).count("sparse_ops.linear") == 1 and {"nn.relu", "nn.silu"} <= set(ops(after))
    given = arrays(X, W, (6,))
    for found, expected in zip(interpret(after, *given), interpret(before, *given), strict=True):
        assert_close(found, expected, depth=16, dtype="float32")


def test_a_residual_that_is_a_linear_layer_itself():
    def call(x, v, w):
        return R.add(product(x, v), product(x, w))

    after = check(graph(call, X, W, W), X, W, W)
    assert [arguments(linear) for linear in calls(after, "sparse_ops.linear")] in ([set(), {"residual"}], [{"residual"}, set()])


KEPT = {
    "a matrix for each batch element": (R.matmul, (2, 3, 8), (2, 8, 6)),
    "a matrix of unknown size": (R.matmul, ("n", "m"), ("m", 6)),
    "a vector": (R.matmul, (8,), (8, 6)),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case):
    before = graph(*KEPT[case])
    assert ops(RecognizeLinear()(before)) == ["matmul"]


def test_symbolic_rows_and_other_types():
    def call(x, w, r):
        return R.add(r, product(x, w))

    shapes = ("b", "s", 8), W, ("b", "s", 6)
    for dtype in ("bfloat16", "float16"):
        assert calls(RecognizeLinear()(graph(call, *shapes, dtype=dtype)), "sparse_ops.linear")
    assert not calls(RecognizeLinear()(graph(call, *shapes, dtype="float64")), "sparse_ops.linear")
    (linear,) = calls(RecognizeLinear()(graph(call, *shapes)), "sparse_ops.linear")
    assert arguments(linear) == {"residual"}
    assert not np.isscalar(linear.ty.shape.values[0])
