"""`RecognizeSoftmax`: the last axis only."""

from tvm import relax

from sparse_ops.transform import RecognizeSoftmax
from tests.sparse_ops.transform.graphs import arrays, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.tolerance import assert_close


def test_before_and_after():
    before = graph(lambda x: relax.op.nn.softmax(x, axis=2), (2, 3, 5))
    after = RecognizeSoftmax()(before)
    assert ops(after) == ["sparse_ops.softmax"]
    (x,) = arrays((2, 3, 5))
    assert_close(interpret(after, x), interpret(before, x), depth=5, dtype="float32")


def test_another_axis_stays():
    assert ops(RecognizeSoftmax()(graph(lambda x: relax.op.nn.softmax(x, axis=1), (2, "n", 5)))) == ["nn.softmax"]
