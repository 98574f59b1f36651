"""Shared by the tests that walk the registry; run as a program, it prints what every row computes with 1 and 2 threads."""

import hashlib
import json
import os
import sys

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


def module_of(row: OpRow, dtype: str) -> tvm.IRModule:
    """The row's example as a module of one function, `main`, with symbolic sizes."""
    example = example_of(row, dtype, max(row.sizes))
    names: dict[str, tvm.tirx.Var] = {}
    variables = []
    for i, (array, shape) in enumerate(zip(example.inputs, example.shapes, strict=True)):
        dims = [names.setdefault(d, tvm.tirx.Var(d, "int64")) if isinstance(d, str) else d for d in shape]
        variables.append(relax.Var(f"arg{i}", relax.TensorType(dims, str(array.dtype))))
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            result = builder.emit_output(example.call(*variables))
        builder.emit_func_output(result)
    return builder.get()


def run(executable: tvm.runtime.Executable, example: Example) -> list[np.ndarray]:
    """The outputs of a compiled module on an example."""
    machine = relax.VirtualMachine(executable, tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(array) for array in example.inputs))
    return [out.numpy() for out in ([result] if isinstance(result, tvm.runtime.Tensor) else result)]


def digest(outputs: list[np.ndarray]) -> str:
    """A name for the bits of some arrays."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(out).tobytes() for out in outputs)).hexdigest()


def main():
    """Compile every row once, then run it in two processes, as the number of threads is fixed once the pool has started.

    Prints a line of JSON for each: {row: {rows of features: digest}}.
    """
    compiled = {case_id(case): build(module_of(*case)) for case in CASES}
    examples = {case_id(case): {rows: example_of(*case, rows) for rows in SIZES} for case in CASES}
    for threads in THREADS:
        child = os.fork()
        if child == 0:
            os.environ["TVM_NUM_THREADS"] = str(threads)
            found = {
                name: {rows: digest(run(compiled[name], example)) for rows, example in sizes.items()}
                for name, sizes in examples.items()
            }
            print(json.dumps(found), flush=True)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            sys.exit(f"the run with {threads} threads failed")


if __name__ == "__main__":
    main()
