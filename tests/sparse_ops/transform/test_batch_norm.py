"""`RecognizeBatchNorm` and `FoldBatchNorm`: what joins the layer before, what does not, and the numbers either way."""

import numpy as np
import pytest
from tvm import relax

from sparse_ops import op
from sparse_ops.transform import FoldBatchNorm, RecognizeBatchNorm, RecognizeConv, RecognizeLinear, SimplifyLayout, to_precision
from tests.sparse_ops.transform.graphs import arguments, arrays, calls, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.tolerance import assert_close

R = relax.op
X, W = (5, 8), (6, 8)
AFFINE, LINEAR, CONV = (f"sparse_ops.{name}" for name in ("channel_affine", "linear", "conv3d"))
ARITHMETIC = {"add", "multiply", "subtract", "divide", "sqrt", "negative"}  # on parameters


def emit(expr):
    return relax.BlockBuilder.current().emit(expr)


def batch_norm(x, *statistics, axis=1, center=True, scale=True, training=False):
    """`R.nn.batch_norm` of x, the first of its results; statistics: weight, bias, mean, variance."""
    result = R.nn.batch_norm(x, *statistics, axis=axis, epsilon=0.1, center=center, scale=scale, training=training)
    return emit(relax.TupleGetItem(emit(result), 0))


def given_for(shapes):
    """Arrays, the variance at the end positive."""
    *others, variance = arrays(*shapes)
    return [*others, np.abs(variance)]


def compared(before, after, shapes, depth=16):
    given = given_for(shapes)
    assert_close(interpret(after, *given), interpret(before, *given), depth=depth, dtype="float32")
    return after


def with_parameters(mod, inputs=1):
    """The module, which takes what follows its first arguments as parameters."""
    mod.update_func(mod.get_global_var("main"), mod["main"].with_attr("num_input", inputs))
    return mod


def check(call, *shapes, inputs=1):
    """The module after all passes that have a part in it; it computes the same."""
    before = SimplifyLayout()(with_parameters(graph(call, *shapes), inputs))
    after = before
    for each in (RecognizeLinear, RecognizeConv, RecognizeBatchNorm, FoldBatchNorm, SimplifyLayout):
        after = each()(after)
    return compared(before, after, shapes)


@pytest.mark.parametrize("shape", [(5, 6), (2, 6, 3), (2, 6, 3, 4, 5)])
@pytest.mark.parametrize("options", [{}, {"center": False}, {"scale": False}, {"center": False, "scale": False}], ids=str)
def test_recognized(shape, options):
    shapes = shape, *[(6,)] * 4
    before = graph(lambda *args: batch_norm(*args, **options), *shapes)
    after = RecognizeBatchNorm()(before)
    assert set(ops(after)) <= {AFFINE, *ARITHMETIC} and ops(after)[-1] == AFFINE
    x, *vectors = given_for(shapes)
    weight, bias = vectors[0] * 0 + 1, vectors[1] * 0
    used = (vectors[0] if options.get("scale", True) else weight, vectors[1] if options.get("center", True) else bias)
    assert_close(interpret(after, x, *vectors), interpret(before, x, *used, *vectors[2:]), depth=4, dtype="float32")


STAYS = {
    "training": ((5, 6), {"training": True}),
    "channels that come last": ((2, 3, 6), {"axis": 2}),
    "channels of unknown number": (("n", "c"), {}),
}


@pytest.mark.parametrize("case", STAYS)
def test_not_recognized(case):
    shape, options = STAYS[case]
    vector = (shape[options.get("axis", 1)],)
    before = graph(lambda *args: batch_norm(*args, **options), shape, *[vector] * 4)
    assert "nn.batch_norm" in ops(RecognizeBatchNorm()(before))


def matmul(x, w):
    return R.matmul(x, R.permute_dims(w))


def conv(x, w):
    return R.nn.conv3d(x, w, padding=1)


def image(x, w):
    return R.nn.conv2d(x, w, strides=2)


GRID, KERNEL = (2, 3, 4, 5, 6), (6, 3, 3, 3, 3)
LAYERS = {
    "linear": (matmul, X, W, LINEAR),
    "conv3d": (conv, GRID, KERNEL, CONV),
    "conv2d": (image, (2, 3, 7, 8), KERNEL[:4], CONV),
}


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("case", LAYERS)
def test_folded_with_what_follows(case, has_bias):
    layer, x, w, name = LAYERS[case]
    rank = len(x)

    def call(x, residual, w, *rest):
        bias, statistics = rest[: len(rest) - 4], rest[-4:]
        y = layer(x, w)
        for vector in bias:
            y = R.add(y, R.reshape(vector, (1, 6, *[1] * (rank - 2))))
        return R.nn.relu(R.add(batch_norm(y, *statistics), residual))

    size = {"linear": (5, 6), "conv3d": (2, 6, 4, 5, 6), "conv2d": (2, 6, 3, 3)}[case]
    after = check(call, x, size, w, *[(6,)] * (4 + has_bias), inputs=2)
    assert set(ops(after)) <= {name, *ARITHMETIC, "reshape"}
    (folded,) = calls(after, name)
    assert arguments(folded) == {"bias", "residual"} and folded.attrs["activation"] == "relu"


def test_an_activation_of_ours_is_taken_in_too():
    after = check(lambda x, w, *rest: op.activation(emit(batch_norm(matmul(x, w), *rest)), "silu"), X, W, *[(6,)] * 4)
    assert set(ops(after)) <= {LINEAR, *ARITHMETIC, "reshape"}
    assert calls(after, LINEAR)[0].attrs["activation"] == "silu"


def test_what_does_not_fold_takes_in_the_activation_alone():
    after = check(lambda x, r, *rest: R.add(R.nn.silu(batch_norm(x, *rest)), r), (5, 6), (5, 6), *[(6,)] * 4, inputs=2)
    assert [name for name in ops(after) if name not in ARITHMETIC] == [AFFINE] and ops(after)[-1] == "add"
    assert calls(after, AFFINE)[0].attrs["activation"] == "silu"


def test_one_behind_another():
    """Both become part of the layer."""
    after = check(lambda x, w, *rest: batch_norm(batch_norm(matmul(x, w), *rest), *rest), X, W, *[(6,)] * 4)
    assert AFFINE not in ops(after) and ops(after).count(LINEAR) == 1


def twice(x, w, *rest):
    y = emit(matmul(x, w))
    return R.add(batch_norm(y, *rest), y)


STANDS = {  # what is between or beside, further shapes, inputs
    "an activation": (lambda x, w, *rest: batch_norm(R.nn.relu(matmul(x, w)), *rest), [], 1),
    "a residual": (lambda x, r, w, *rest: batch_norm(R.add(matmul(x, w), r), *rest), [(5, 6)], 2),
    "a gate": (lambda x, g, w, *rest: batch_norm(R.multiply(matmul(x, w), g), *rest), [(6,)], 2),
    "another reader": (twice, [], 1),
    "a weight that is an input": (lambda x, w, *rest: batch_norm(matmul(x, w), *rest), [], 2),
    "a weight made of an input": (lambda x, w, *rest: batch_norm(matmul(x, R.add(w, R.max(x))), *rest), [], 1),
    "statistics that are an input": (lambda x, w, *rest: batch_norm(matmul(x, w), *rest), [], 6),
}


@pytest.mark.parametrize("case", STANDS)
def test_what_does_not_fold(case):
    call, more, inputs = STANDS[case]
    shapes = X, *more, W, *[(6,)] * 4
    before = SimplifyLayout()(with_parameters(graph(call, *shapes), inputs))
    after = FoldBatchNorm()(RecognizeBatchNorm()(RecognizeLinear()(before)))
    assert ops(after).count(AFFINE) == 1


def test_constants_are_known_without_any_parameters():
    w, *vectors = given_for([W, *[(6,)] * 4])

    def call(x):
        return batch_norm(matmul(x, relax.const(w)), *map(relax.const, vectors))

    after = FoldBatchNorm()(RecognizeBatchNorm()(RecognizeLinear()(graph(call, X))))
    assert AFFINE not in ops(after)


def test_weights_are_narrowed_behind_the_folding():
    before = SimplifyLayout()(with_parameters(graph(lambda x, w, *r: batch_norm(matmul(x, w), *r), X, W, *[(6,)] * 4)))
    after = to_precision("bfloat16")(FoldBatchNorm()(RecognizeBatchNorm()(RecognizeLinear()(before))))
    (linear,) = calls(after, LINEAR)
    values = {binding.var: binding.value for block in after["main"].body.blocks for binding in block.bindings}
    assert str(linear.args[1].ty.dtype) == "bfloat16"
    cast = values[linear.args[1]]
    assert cast.op.name == "relax.astype" and values[cast.args[0]].op.name == "relax.multiply"
    assert {str(arg.ty.dtype) for arg in values[cast.args[0]].args} == {"float32"}
