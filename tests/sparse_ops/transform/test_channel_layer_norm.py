"""`RecognizeChannelLayerNorm`: no transposition is left around the norm."""

import pytest
from tvm import relax

from sparse_ops.transform import RecognizeChannelLayerNorm, SimplifyLayout
from tests.sparse_ops.transform.graphs import arrays, calls, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.tolerance import assert_close

R = relax.op


def norm(x, weight, bias, there=(0, 2, 3, 1), back=(0, 3, 1, 2)):
    last = R.permute_dims(x, list(there))
    return R.permute_dims(R.nn.layer_norm(last, weight, bias, [-1], epsilon=0.1), list(back))


@pytest.mark.parametrize("batch", [1, 2])
def test_before_and_after(batch):
    shapes = (batch, 6, 3, 4), (6,), (6,)
    before = SimplifyLayout()(graph(lambda *args: R.nn.silu(norm(*args)), *shapes))
    after = SimplifyLayout()(RecognizeChannelLayerNorm()(before))
    assert set(ops(after)) <= {"reshape", "sparse_ops.channel_layer_norm"}
    assert calls(after, "sparse_ops.channel_layer_norm")[0].attrs["activation"] == "silu"
    given = arrays(*shapes)
    assert_close(interpret(after, *given), interpret(before, *given), depth=6, dtype="float32")


@pytest.mark.parametrize("moves", [{"back": (0, 3, 2, 1)}, {"there": (0, 3, 2, 1)}], ids=str)
def test_sites_that_are_transposed_stay(moves):
    before = SimplifyLayout()(graph(lambda *args: norm(*args, **moves), (2, 6, 4, 4), (6,), (6,)))
    assert ops(RecognizeChannelLayerNorm()(before)) == ["permute_dims", "nn.layer_norm", "permute_dims"]
