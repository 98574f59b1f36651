"""`SplitLinear`: ranges of columns become layers of their own, where nothing is computed twice."""

import pytest
from tvm import relax

from sparse_ops import op
from sparse_ops.transform import SimplifyLayout, SplitLinear
from tests.sparse_ops.transform.graphs import arrays, calls, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.tolerance import assert_close

R = relax.op
SHAPES = [(5, 8), (12, 8), (12,)]


def emit(expr):
    return relax.BlockBuilder.current().emit(expr)


def columns(y, *ranges):
    return relax.Tuple([emit(R.strided_slice(y, [1], [begin], [end])) for begin, end in ranges])


def check(call, shapes=SHAPES):
    """The module after the pass; it computes the same."""
    before = graph(call, *shapes)
    after = SplitLinear()(before)
    given = arrays(*shapes)
    for found, expected in zip(interpret(after, *given), interpret(before, *given), strict=True):
        assert_close(found, expected, depth=8, dtype="float32")
    return after


def test_ranges():
    after = check(lambda x, w, b: columns(emit(op.linear(x, w, b, activation="silu")), (0, 4), (4, 8), (10, 12)))
    assert [int(call.ty.shape.values[1]) for call in calls(after, "sparse_ops.linear")] == [4, 4, 2]
    assert [call.args[0].ty.shape.values[0] for call in calls(after, "strided_slice")[::2]] == [12] * 3  # of the weight


def test_q_k_and_v_as_models_write_them():
    """[B, S, 3 * H * D] -> [B, S, 3, H, D], transposed, then three elements."""

    def call(x, w):
        qkv = R.permute_dims(R.reshape(emit(op.linear(x, w)), (1, 5, 3, 2, 2)), [2, 0, 3, 1, 4])
        parts = emit(R.split(qkv, 3, axis=0))
        return relax.Tuple([emit(R.squeeze(emit(relax.TupleGetItem(parts, i)), [0])) for i in range(3)])

    before = SimplifyLayout()(graph(call, *SHAPES[:2]))
    after = SplitLinear()(before)
    assert ops(after).count("sparse_ops.linear") == 3
    given = arrays(*SHAPES[:2])
    for found, expected in zip(interpret(after, *given), interpret(before, *given), strict=True):
        assert_close(found, expected, depth=8, dtype="float32")


def with_all(x, w, b):
    y = emit(op.linear(x, w, b))
    return relax.Tuple([*columns(y, (0, 6)).fields, y])


KEPT = {
    "all is read too": (with_all, SHAPES),
    "columns that are read twice": (lambda x, w, b: columns(emit(op.linear(x, w, b)), (0, 8), (4, 12)), SHAPES),
    "a residual": (lambda x, w, r: columns(emit(op.linear(x, w, residual=r)), (0, 6), (6, 12)), [*SHAPES[:2], (5, 12)]),
    "rows": (lambda x, w, b: relax.Tuple([emit(R.strided_slice(emit(op.linear(x, w, b)), [0], [0], [2]))]), SHAPES),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case):
    call, shapes = KEPT[case]
    (linear,) = calls(check(call, shapes), "sparse_ops.linear")
    assert linear.ty.shape.values[1] == 12
