"""The poison itself: what a kernel does not write is garbage."""

import numpy as np
import tvm
from tvm import relax
from tvm.script import tirx as T

from sparse_ops.op.register import call_kernel
from tests.poison import INTEGER, compile_poisoned, poisoned
from tir_kernels.dispatch import host_target


@T.prim_func(s_tir=True)
def writes_half(x: T.Buffer((6,), "float32"), even: T.Buffer((6,), "float32"), odd: T.Buffer((6,), "int32")):
    T.func_attr({"tirx.noalias": True, "global_symbol": "writes_half"})
    for i in range(3):
        even[2 * i] = x[2 * i]
        odd[2 * i + 1] = T.int32(i)


def test_what_is_not_written_is_garbage():
    types = [relax.TensorType([6], dtype) for dtype in ("float32", "int32")]
    builder, x = relax.BlockBuilder(), relax.Var("x", types[0])
    with builder.function("main", [x]):
        with builder.dataflow():
            out = builder.emit_output(call_kernel(builder, writes_half, [x], types))
        builder.emit_func_output(out)
    target = host_target()
    machine = relax.VirtualMachine(compile_poisoned(poisoned(builder.get()), target), tvm.cpu())
    for _ in range(2):  # the first run must not use up the garbage
        even, odd = (a.numpy() for a in machine["main"](tvm.runtime.tensor(np.arange(6, dtype="float32"))))
        np.testing.assert_array_equal(even, [0, np.nan, 2, np.nan, 4, np.nan])
        assert odd.tolist() == [INTEGER, 0, INTEGER, 1, INTEGER, 2]
