"""Few elements are worked on by the calling thread, with the bits that they have among many."""

import numpy as np
import pytest
import tvm
from tvm import relax, tirx

from sparse_ops import op
from sparse_ops.build import build
from sparse_ops.transform.cpu.schedule_rest.nodes import collect
from sparse_ops.transform.cpu.small_calls import SMALL, with_small_calls
from tir_kernels.dispatch import kernel_for
from tir_kernels.spec.gather_rows import GatherRows
from tir_kernels.spec.linear import Linear


def loops(function: tirx.PrimFunc, kind) -> list[tirx.For]:
    return [loop for loop in collect(function.body, tirx.For) if loop.kind == kind]


def test_little_code_stands_twice():
    kernel = kernel_for(GatherRows(8)).function
    both = with_small_calls(kernel)
    (parallel,) = loops(kernel, tirx.ForKind.PARALLEL)
    branches = [branch for branch in collect(both.body, tirx.IfThenElse) if isinstance(branch.else_case, tirx.For)]
    (pair,) = [branch for branch in branches if branch.else_case.kind == tirx.ForKind.PARALLEL]
    assert pair.then_case.kind == tirx.ForKind.SERIAL
    assert pair.then_case.extent.same_as(parallel.extent) and pair.else_case.extent.same_as(parallel.extent)


def test_a_matrix_product_does_not():
    kernel = kernel_for(Linear(256, 256)).function
    both = with_small_calls(kernel)
    assert [len(collect(f.body, tirx.BufferStore)) for f in (kernel, both)] == [len(collect(kernel.body, tirx.BufferStore))] * 2


CHANNELS = 24
CALLS = {
    "layer_norm": lambda x: op.layer_norm(x, relax.const(np.linspace(0.5, 2, CHANNELS, dtype="float32"))),
    "activation": lambda x: op.activation(x, "gelu"),
    "softmax": lambda x: op.softmax(x),
}


@pytest.mark.parametrize("name", CALLS)
def test_few_rows_have_the_bits_of_many(name):
    x = relax.Var("x", relax.TensorType([tvm.tirx.Var("n", "int64"), CHANNELS], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x]):
        with builder.dataflow():
            result = builder.emit_output(builder.emit(CALLS[name](x)))
        builder.emit_func_output(result)
    main = build(builder.get())["main"]
    many = np.random.default_rng(0).standard_normal((SMALL // CHANNELS + 1, CHANNELS), dtype=np.float32)
    whole = main(tvm.runtime.tensor(many)).numpy()
    for few in (0, 1, 7, 100):
        assert main(tvm.runtime.tensor(many[:few])).numpy().tobytes() == whole[:few].tobytes()
