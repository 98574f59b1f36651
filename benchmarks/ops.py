"""Every op of the registry on one larger example.

    python -m benchmarks.ops [--quick] [--json FILE] [--only SUBSTRING]

A row of `sparse_ops.testing.examples.OPS` is all that it takes to appear here. Inputs of fixed shape are weights, bound as
constants, so that their packing is not part of a call. The oracle of each example checks the result.
"""

import functools
import sys
import zlib

import numpy as np
import tvm
from tvm import relax

from sparse_ops.build import build
from sparse_ops.testing.examples import OPS, Example, OpRow
from tests.tolerance import compare
from tir_kernels.dispatch import host_target

from .harness import Benchmark, Case, arrays, parse_options

ROWS = 4_000  # of an example; some oracles walk them in Python, that of attention compares each with each
QUICK_ROWS = 1_000


def compile_example(example: Example):
    """(function, arguments): the example's call, compiled, and the inputs that are no weights."""
    dims = {name: tvm.tirx.Var(name, "int64") for shape in example.shapes for name in shape if isinstance(name, str)}
    values, variables, arguments = [], [], []
    for array, shape in zip(example.inputs, example.shapes, strict=True):
        tensor = tvm.runtime.tensor(np.ascontiguousarray(array))
        if all(isinstance(dim, int) for dim in shape):
            values.append(relax.const(tensor, array.dtype.name))
            continue
        ty = relax.TensorType([dims.get(dim, dim) for dim in shape], array.dtype.name)
        variables.append(relax.Var(f"input_{len(variables)}", ty))
        values.append(variables[-1])
        arguments.append(tensor)
    bb = relax.BlockBuilder()
    with bb.function("main", variables):
        with bb.dataflow():
            result = bb.emit_output(bb.emit(example.call(*values)))
        bb.emit_func_output(result)
    with host_target():  # `tvm.compile` folds no constants on a CPU
        mod = relax.transform.FoldConstant()(relax.transform.LegalizeOps()(bb.get()))
    return build(mod)["main"], arguments


def op_case(row: OpRow, rows: int, dtype: str) -> Case:
    """An op on an example of about `rows` rows."""
    example = row.example(np.random.default_rng(zlib.crc32(row.name.encode())), rows, dtype)
    function, arguments = compile_example(example)

    def check(result):
        for place, (found, expected) in enumerate(zip(arrays(result), example.expected, strict=True)):
            # a narrower result is rounded once after a float32 sum, so that only in float32 the depth counts
            depth = example.depth if found.dtype == np.float32 else 1
            kind = None if expected.dtype.kind in "iub" else found.dtype
            yield compare(found, expected, depth, dtype=kind, name=f"output {place}")

    return Case(dtype, lambda: function(*arguments), check, flops=float(example.flops), facts={"rows": rows})


def main(arguments: list[str] | None = None) -> int:
    options = parse_options("Every op of the registry.", arguments)
    bench = Benchmark("ops", options)
    rows = QUICK_ROWS if options.quick else ROWS
    for row in OPS:
        for dtype in row.dtypes[:1] if options.quick else row.dtypes:
            bench.run(row.name, functools.partial(op_case, row, rows, dtype))
    return bench.finish()


if __name__ == "__main__":
    sys.exit(main())
