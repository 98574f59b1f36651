"""`LiftParams`: what depends on parameters alone is computed once, and reads them one at a time."""

import numpy as np
import pytest
import tvm
from tvm import relax

from sparse_ops import op
from sparse_ops.build import build, pack_params
from sparse_ops.transform import LiftParams, to_precision
from tests.sparse_ops.transform.graphs import arrays, graph, ops
from tests.tolerance import assert_close
from tir_kernels.dispatch import host_target

SHAPES = [("n", 8), (6, 8), (8, 6)]


def layers(x, first, second):
    bb = relax.BlockBuilder.current()
    h = bb.emit(op.linear(x, first, activation="relu"))
    return op.linear(h, bb.emit(relax.op.multiply(second, relax.const(2.0, "float32"))))


def module():
    mod = graph(layers, *SHAPES)
    mod["main"] = mod["main"].with_attr("num_input", 1)
    return mod


@pytest.mark.parametrize("precision, casts", [("float32", 0), ("bfloat16", 1), ("float16", 1)])
def test_before_and_after(precision, casts):
    """Packing goes, and with it the casts of weights; the casts of features stay."""
    with host_target():
        before = relax.transform.LegalizeOps()(to_precision(precision)(module()))
        after = LiftParams()(before)
    kinds = [[name.partition("_")[0] for name in ops(mod)] for mod in (before, after)]
    cast = ["cast"] * casts
    assert kinds[0] == [*cast * 2, "pack", "linear", "multiply", *cast, "pack", "linear", *cast]
    assert kinds[1] == [*cast, "linear", "linear", *cast]
    assert "main_transform_params" in {gv.name_hint for gv in after.get_global_vars()}
    assert len(after["main"].params) == 3 and after["main"].params[1].ty.ndim == 4  # packed


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_numbers_and_the_order_of_reading(precision):
    vm = relax.VirtualMachine(build(module(), lift_params=True, precision=precision), tvm.cpu())
    x, first, second = arrays((5, 8), *SHAPES[1:])
    read = []

    def parameter(index):
        read.append(index)
        return tvm.runtime.tensor((first, second)[index])

    packed = pack_params(vm, "main", parameter)
    assert read == [0, 1]
    out = vm["main"](tvm.runtime.tensor(x), *packed).numpy()
    expected = np.maximum(x @ first.T, 0) @ (2 * second).T
    assert_close(out, expected, depth=16, dtype=precision)
