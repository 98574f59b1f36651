"""`RecognizeGroupNorm`: dense tensors of any rank, with an activation behind."""

import pytest
from tvm import relax

from sparse_ops.transform import RecognizeGroupNorm
from tests.sparse_ops.transform.graphs import arrays, calls, graph, ops
from tests.sparse_ops.transform.interpret import interpret
from tests.tolerance import assert_close

R = relax.op


def norm(x, weight, bias, **options):
    axes = list(range(2, x.ty.ndim))
    return R.nn.group_norm(x, weight, bias, **({"num_groups": 2, "channel_axis": 1, "axes": axes, "epsilon": 0.1} | options))


@pytest.mark.parametrize("shape", [(2, 6, 5), (2, 6, 2, 3, 4)], ids=str)
def test_before_and_after(shape):
    before = graph(lambda x, w, b: R.nn.silu(norm(x, w, b)), shape, (6,), (6,))
    after = RecognizeGroupNorm()(before)
    assert ops(after) == ["sparse_ops.dense_group_norm"]
    assert calls(after, "sparse_ops.dense_group_norm")[0].attrs["activation"] == "silu"
    given = arrays(shape, (6,), (6,))
    assert_close(interpret(after, *given), interpret(before, *given), depth=72, dtype="float32")


KEPT = {
    "channels last": (lambda x, w, b: norm(x, w, b, channel_axis=2, axes=[1]), (2, 5, 6), (6,), (6,)),
    "not over all sites": (lambda x, w, b: norm(x, w, b, axes=[2]), (2, 6, 2, 3), (6,), (6,)),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_stays(case):
    assert ops(RecognizeGroupNorm()(graph(*KEPT[case]))) == ["nn.group_norm"]
