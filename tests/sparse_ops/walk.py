"""Shared by the tests that walk the registry: its rows, modules of them, and their results."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tvm
from tvm import relax

from sparse_ops.build import build
from sparse_ops.testing.examples import OPS, Example, OpRow
from tir_kernels.cpu.threads import VARIABLE, threads

CASES = [(row, dtype) for row in OPS for dtype in row.dtypes]


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


def with_threads(count: int, call: Callable):
    """What `call()` returns with `count` threads, on any machine: in a thread of its own, as that gets workers of its own."""

    def checked():
        assert threads() == count
        return call()

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as executor:
        patch.setenv(VARIABLE, str(count))
        return executor.submit(checked).result()


def run_with(count: int, executable: tvm.runtime.Executable, inputs: Sequence) -> list[np.ndarray]:
    """The outputs with `count` threads."""
    return with_threads(count, lambda: run(executable, inputs))


def digest(outputs: list[np.ndarray]) -> str:
    """A name for the bits of some arrays."""
    return hashlib.sha256(b"".join(np.ascontiguousarray(out).tobytes() for out in outputs)).hexdigest()
