"""What follows the sums of a product, before they are written: out = act(gate * (sum + bias) + residual)."""

from collections.abc import Callable
from dataclasses import dataclass

import tvm
from tvm.script import tirx as T

from ..vector_math import EMIT


def rows_and_columns(row, column):
    """The indices of an element of a matrix."""
    return [row, column]


@dataclass(frozen=True)
class Epilogue:
    """The buffers of an epilogue; None where there is none.

    `at(row, column)`: the indices of an element in `out` and `residual`. `gate_row(row)`: the row of the gate for a row.
    `in_vectors`: whether columns side by side lie side by side in memory, and rows are whole vectors. `channel(column)`: the
    element of the bias. `there(row, column)`: whether an element is part of the result; None where all are.
    """

    out: tvm.tirx.Buffer
    activation: str
    bias: tvm.tirx.Buffer  # float32 [columns]
    residual: tvm.tirx.Buffer | None = None
    gate: tvm.tirx.Buffer | None = None  # float32 [B, columns]
    gate_row: Callable | None = None
    at: Callable = rows_and_columns
    in_vectors: bool = False
    channel: Callable = lambda column: column
    there: Callable | None = None

    @property
    def buffers(self) -> list[tvm.tirx.Buffer]:
        """Those that there are."""
        return [buffer for buffer in (self.out, self.bias, self.residual, self.gate) if buffer is not None]

    def finish(self, values, row, column, columns, fast=False) -> None:
        """Emit: write the elements of a row from `column` on, as many as `values` (float32, local) has.

        `columns`: how many there are, in elements counted from `column`. `fast`: whether all buffers are aligned.
        """
        count = int(values.shape[0])
        loaded = []

        def load(buffer, at, there=None):
            own = T.alloc_buffer((count,), buffer.dtype, scope="local")
            loaded.append(own)

            def one_by_one():
                with T.unroll(count) as e:
                    zero = T.Cast(buffer.dtype, T.float32(0))
                    inside = e < columns if there is None else T.And(e < columns, there(row, column + e))
                    T.buffer_store(own, T.if_then_else(inside, buffer[tuple(at(e))], zero), [e])

            self._either(fast, count, lambda e: T.buffer_store(own, buffer[tuple(at(e))], [e]), one_by_one)
            return own

        bias = load(self.bias, lambda e: [self.channel(column + e)])
        gate = residual = None
        if self.gate is not None:
            gate_row = self.gate_row(row)
            gate = load(self.gate, lambda e: [gate_row, column + e])
        if self.residual is not None:
            residual = load(self.residual, lambda e: self.at(row, column + e), self.there)
        result = T.alloc_buffer((count,), self.out.dtype, scope="local")
        act = EMIT[self.activation]
        with T.unroll(count) as e:
            value = values[e] + bias[e]
            if gate is not None:
                value = value * gate[e]
            if residual is not None:
                value = value + T.Cast("float32", residual[e])
            T.buffer_store(result, T.Cast(self.out.dtype, act(value)), [e])

        def store_one_by_one():
            with T.unroll(count) as e:
                inside = e < columns if self.there is None else T.And(e < columns, self.there(row, column + e))
                with T.If(inside), T.Then():
                    T.buffer_store(self.out, result[e], self.at(row, column + e))

        self._either(fast, count, lambda e: T.buffer_store(self.out, result[e], self.at(row, column + e)), store_one_by_one)

    def _either(self, fast, count: int, of_one: Callable, one_by_one: Callable) -> None:
        """Emit: `of_one(e)` for a vector, or elements one by one."""
        if not self.in_vectors or count == 1:
            one_by_one()
            return
        with T.If(fast):
            with T.Then(), T.vectorized(count) as e:
                of_one(e)
            with T.Else():
                one_by_one()
