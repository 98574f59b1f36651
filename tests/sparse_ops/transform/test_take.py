"""`BoundTakes`: indices stay within."""

import numpy as np
import tvm
from tvm import relax

from sparse_ops.transform import BoundTakes
from tests.sparse_ops.transform.graphs import calls, graph


def test_fast_takes_become_clipped_ones():
    index = relax.const(np.array([2, 0], "int64"))
    before = graph(lambda x: relax.op.take(x, index, axis=1), (4, 3))
    (take,) = calls(BoundTakes()(before), "take")
    assert (str(take.attrs.mode), int(take.attrs.axis)) == ("clip", 1)


def test_other_takes_stay():
    index = relax.const(np.array([2, 0], "int64"))
    before = graph(lambda x: relax.op.take(x, index, axis=1, mode="wrap"), (4, 3))
    tvm.ir.assert_structural_equal(BoundTakes()(before), before)
