"""Shared by the tests that walk the registry; run as a program, it prints what every row computes with 1 and 2 threads."""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence

import numpy as np
import tvm
from tvm import relax

from sparse_ops.build import build
from sparse_ops.registry import OPS, Example, OpRow

CASES = [(row, dtype) for row in OPS for dtype in row.dtypes]
THREADS = (1, 2)
SIZES = (97, 1000)  # of which results are digested: the larger one gives every kernel several tasks


def case_id(case: tuple[OpRow, str]) -> str:
    row, dtype = case
    return f"{row.name}-{dtype}"


def example_of(row: OpRow, dtype: str, rows: int) -> Example:
    return row.example(np.random.default_rng(rows), rows, dtype)


def module_of(call: Callable[..., relax.Expr], inputs: Sequence, shapes: Sequence[tuple]) -> tvm.IRModule:
    """A module of one function, `main`, that returns `call` of inputs of these dtypes; a named dimension is symbolic."""
    names: dict[str, tvm.tirx.Var] = {}
    variables = []
    for i, (array, shape) in enumerate(zip(inputs, shapes, strict=True)):
        dims = [names.setdefault(d, tvm.tirx.Var(d, "int64")) if isinstance(d, str) else d for d in shape]
        variables.append(relax.Var(f"arg{i}", relax.TensorType(dims, str(array.dtype))))
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(call(*variables))
        builder.emit_func_output(result)
    return builder.get()


def example_module(row: OpRow, dtype: str) -> tvm.IRModule:
    """The row's example as a module with symbolic sizes."""
    example = example_of(row, dtype, max(row.sizes))
    return module_of(example.call, example.inputs, example.shapes)


def run(executable: tvm.runtime.Executable, inputs: Sequence) -> list[np.ndarray]:
    """The outputs of a compiled module."""
    result = relax.VirtualMachine(executable, tvm.cpu())["main"](*(tvm.runtime.tensor(array) for array in inputs))
    return [out.numpy() for out in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]


def evaluate(call: Callable[..., relax.Expr], *inputs: np.ndarray, shapes: Sequence[tuple] | None = None) -> np.ndarray:
    """The one output of `call` of some arrays, compiled for their shapes unless others are given."""
    shapes = [array.shape for array in inputs] if shapes is None else shapes
    (out,) = run(build(module_of(call, inputs, shapes)), inputs)
    return out


def digest(outputs: list[np.ndarray]) -> str:
    """A name for the bits of some arrays."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(out).tobytes() for out in outputs)).hexdigest()


def main():
    """Compile every row once, then run it in two processes, as the number of threads is fixed once the pool has started.

    Prints a line of JSON for each: {row: {rows of features: digest}}.
    """
    compiled = {case_id(case): build(example_module(*case)) for case in CASES}
    examples = {case_id(case): {rows: example_of(*case, rows) for rows in SIZES} for case in CASES}
    for threads in THREADS:
        child = os.fork()
        if child == 0:
            os.environ["TVM_NUM_THREADS"] = str(threads)
            found = {
                name: {rows: digest(run(compiled[name], example.inputs)) for rows, example in sizes.items()}
                for name, sizes in examples.items()
            }
            print(json.dumps(found), flush=True)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"the run with {threads} threads failed")


if __name__ == "__main__":
    main()
