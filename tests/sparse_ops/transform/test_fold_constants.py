"""`FoldConstants`: chains of kernels on constants are gone, whatever their type, and nothing else is."""

import numpy as np
import tvm
from tvm import relax

from sparse_ops import op
from sparse_ops.transform import FoldConstants
from sparse_ops.transform.rewrite import CLEAN
from tests.sparse_ops.transform.graphs import arrays, graph, ops
from tir_kernels.dispatch import host_target

R = relax.op
W, V = arrays((6, 8), (6, 8))


def folded(call, *shapes):
    with host_target():
        before = CLEAN(relax.transform.LegalizeOps()(graph(call, *shapes)))
        return before, FoldConstants()(before)


def constants(mod):
    """The constants that `main` reads."""
    found = []
    relax.analysis.post_order_visit(
        mod["main"], lambda node: found.append(node.value.numpy()) if isinstance(node, tvm.ir.GenericConst) else None
    )
    return found


def test_a_chain_of_kernels():
    def call(x):
        half = R.strided_slice(relax.const(W), [0], [0], [3])
        return R.add(x, R.astype(R.astype(R.multiply(half, half), "bfloat16"), "float32"))

    before, after = folded(call, ("n", 8))
    assert ops(before) == ["strided_slice", "multiply", "cast", "cast", "add"]
    assert ops(after) == ["add"]
    (found,) = constants(after)
    expected = (W[:3] * W[:3]).astype("bfloat16").astype("float32")
    np.testing.assert_array_equal(found, expected)


def test_a_packed_weight():
    _, after = folded(lambda x: op.linear(x, relax.const(W)), ("n", 8))
    assert [name.partition("_")[0] for name in ops(after)] == ["linear"]
    packed = next(array for array in constants(after) if array.ndim == 4)
    assert set(W.ravel()) <= set(packed.ravel())


def test_what_depends_on_inputs_or_is_cheap_stays():
    def call(x):
        return R.add(R.multiply(x, relax.const(W[:1])), R.zeros((2000, 8), "float32"))

    before, after = folded(call, (1, 8))
    assert ops(before) == ops(after)


def test_several_functions():
    """Kernels are shared by functions, constants are not."""
    first, second = (graph(lambda x, w=w: R.add(x, R.abs(relax.const(w))), ("n", 8)) for w in (W[:1], V[:1]))
    first["other"] = second["main"].with_attr("global_symbol", "other")
    with host_target():
        after = FoldConstants()(relax.transform.LegalizeOps()(first))
    for name, array in (("main", W[:1]), ("other", V[:1])):
        assert ops(tvm.IRModule({"main": after[name]})) == ["add"]
        np.testing.assert_array_equal(constants(tvm.IRModule({"main": after[name]}))[0], np.abs(array))
