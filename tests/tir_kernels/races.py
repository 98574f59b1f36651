"""Finds data races: runs a kernel in Python and watches which iterations of a parallel loop touch which cells.

Two iterations race where both touch one cell of a buffer and at least one of them writes it, whatever is written: any two may
run at the same time. What an iteration allocates for itself is its own.
"""

import itertools

import numpy as np
import tvm
from tvm import tirx

MANY = -2  # a cell that several iterations read
UNDEFINED = -7
BINARY = {
    "Add": "+",
    "Sub": "-",
    "Mul": "*",
    "FloorDiv": "//",
    "FloorMod": "%",
    "EQ": "==",
    "NE": "!=",
    "LT": "<",
    "LE": "<=",
    "GT": ">",
    "GE": ">=",
    "And": "and",
    "Or": "or",
    "BitwiseAnd": "&",
    "BitwiseOr": "|",
    "LShift": "<<",
    "RShift": ">>",
}


class RaceError(AssertionError):
    """Two iterations of one parallel loop touch the same cell."""


class Watch:
    """Who touched which cell since the parallel loop began that runs now."""

    def __init__(self):
        self.iteration: int | None = None
        self.writers: dict[tuple[int, int], int] = {}
        self.readers: dict[tuple[int, int], int] = {}

    def loop(self, count: int):
        """The iterations of a parallel loop."""
        assert self.iteration is None, "a parallel loop inside of another"
        self.writers, self.readers = {}, {}
        for self.iteration in range(count):
            yield self.iteration
        self.iteration = None


_numbers = itertools.count()


class Cells:
    """A buffer, flat: reads and writes are checked for their place and for races."""

    def __init__(self, name: str, shape: tuple[int, ...], dtype: str, watch: Watch, array: np.ndarray | None = None):
        self.name, self.shape, self.watch, self.number = name, shape, watch, next(_numbers)
        self.wrap = np.dtype(dtype).type
        self.values = [None] * int(np.prod(shape)) if array is None else array.reshape(-1).tolist()

    def place(self, index: tuple[int, ...]) -> int:
        place = 0
        for i, extent in zip(index, self.shape, strict=True):
            if not 0 <= i < extent:
                raise IndexError(f"{self.name}{list(index)} of {list(self.shape)}")
            place = place * extent + i
        return place

    def __getitem__(self, index):
        place, iteration = self.place(index), self.watch.iteration
        if iteration is not None:
            key = self.number, place
            if self.watch.writers.get(key, iteration) != iteration:
                raise RaceError(
                    f"{self.name}{list(index)}: written by iteration {self.watch.writers[key]}, read by {iteration}"
                )
            if self.watch.readers.setdefault(key, iteration) != iteration:
                self.watch.readers[key] = MANY
        return self.values[place]

    def __setitem__(self, index, value):
        place, iteration = self.place(index), self.watch.iteration
        if iteration is not None:
            key = self.number, place
            for what, who in (("written", self.watch.writers), ("read", self.watch.readers)):
                if who.get(key, iteration) != iteration:
                    raise RaceError(f"{self.name}{list(index)}: {what} by iteration {who[key]}, written by {iteration}")
            self.watch.writers[key] = iteration
        self.values[place] = int(self.wrap(value))


class Pointer:
    """The address of an element of a buffer, to pass to a function."""

    def __init__(self, cells: Cells, *index: int):
        self.cells, self.outer, self.last = cells, index[:-1], index[-1]

    def __getitem__(self, i: int):
        return self.cells[*self.outer, self.last + i]

    def __setitem__(self, i: int, value: int):
        self.cells[*self.outer, self.last + i] = value


def pack_pairs(lanes: int, step: int, near: Pointer, rows: int, pair_in: Pointer, pair_out: Pointer) -> int:
    """What the function of `tir_kernels.cpu.pairs.PACK` does."""
    cursor = 0
    for first in range(0, rows, lanes):
        vector = [near[first * step + i] for i in range(lanes * step)][::step]
        hits = [lane for lane, row in enumerate(vector) if first + lane < rows and row >= 0]
        for i in range(lanes):  # a whole vector is written, what lies behind the hits is undefined
            pair_in[cursor + i] = vector[hits[i]] if i < len(hits) else UNDEFINED
            pair_out[cursor + i] = first + hits[i] if i < len(hits) else UNDEFINED
        cursor += len(hits)
    return cursor


def run(kernel: tirx.PrimFunc, arrays: list[np.ndarray], threads: int) -> None:
    """Run `kernel` on integer arrays, in place, as if with `threads` threads; RaceError where iterations of a loop race."""
    watch = Watch()
    writer = _Writer()
    scope = {
        "cells": lambda name, shape, dtype: Cells(name, shape, dtype, watch),
        "loop": watch.loop,
        "pack_pairs": pack_pairs,
        "Pointer": Pointer,
        "packed": lambda name, *args: threads if name == "runtime.NumThreads" else tvm.get_global_func(name)(*args),
    }
    for param, array in zip(kernel.params, arrays, strict=True):
        scope[writer.name(param)] = Cells(param.name, array.shape, str(array.dtype), watch, array)
        for dim, size in zip(param.ty.shape, array.shape, strict=True):
            if isinstance(dim, tirx.Var):
                assert scope.setdefault(writer.name(dim), size) == size, f"{param.name}: {dim} is {size}"
    writer.statement(kernel.body, 0)
    exec("\n".join(writer.lines), scope)
    for param, array in zip(kernel.params, arrays, strict=True):
        array[...] = np.array(scope[writer.name(param)].values, array.dtype).reshape(array.shape)


class _Writer:
    """Writes a kernel's body as Python."""

    def __init__(self):
        self.lines: list[str] = []
        self.names: dict[tirx.Var, str] = {}

    def name(self, var: tirx.Var) -> str:
        return self.names.setdefault(var, f"{var.name}_{len(self.names)}")

    def statement(self, node, depth: int) -> None:
        def line(text: str) -> None:
            self.lines.append("  " * depth + text)

        kind = type(node).__name__
        if kind == "SeqStmt":
            for part in node.seq:
                self.statement(part, depth)
        elif kind == "AllocBuffer":
            shape = f"({', '.join(map(self.value, node.buffer.shape))},)"
            line(f"{self.name(node.buffer)} = cells({node.buffer.name!r}, {shape}, {str(node.buffer.dtype)!r})")
        elif kind == "Bind":
            line(f"{self.name(node.var)} = {self.value(node.value)}")
        elif kind == "BufferStore":
            line(f"{self.element(node.buffer, node.indices)} = {self.value(node.value)}")
        elif kind == "For":
            assert isinstance(node.min, tirx.IntImm) and node.min.value == 0, node.min
            iterations = "loop" if node.kind == tirx.ForKind.PARALLEL else "range"
            line(f"for {self.name(node.loop_var)} in {iterations}({self.value(node.extent)}):")
            self.statement(node.body, depth + 1)
        elif kind == "While":
            line(f"while {self.value(node.condition)}:")
            self.statement(node.body, depth + 1)
        elif kind == "IfThenElse":
            line(f"if {self.value(node.condition)}:")
            self.statement(node.then_case, depth + 1)
            if node.else_case is not None:
                line("else:")
                self.statement(node.else_case, depth + 1)
        elif kind == "AttrStmt":
            self.statement(node.body, depth)
        elif kind == "Evaluate":
            line(self.value(node.value))
        else:
            raise NotImplementedError(kind)

    def element(self, buffer: tirx.Var, indices) -> str:
        return f"{self.name(buffer)}[{', '.join(map(self.value, indices))},]"

    def value(self, node) -> str:
        kind = type(node).__name__
        if kind in ("IntImm", "FloatImm", "StringImm"):
            return repr(node.value)
        if kind == "Var":
            return self.name(node)
        if kind == "TensorLoad":
            return self.element(node.source, node.indices)
        if kind == "Cast":
            return (
                f"({self.value(node.value)} & {(1 << 64) - 1})" if _type(node) == "uint64" else f"int({self.value(node.value)})"
            )
        if kind in BINARY:
            text = f"({self.value(node.a)} {BINARY[kind]} {self.value(node.b)})"
            return f"({text} & {(1 << 64) - 1})" if _type(node) == "uint64" else text
        if kind in ("Min", "Max"):
            return f"{kind.lower()}({self.value(node.a)}, {self.value(node.b)})"
        if kind == "Not":
            return f"(not {self.value(node.a)})"
        if kind == "Select":
            return f"({self.value(node.true_value)} if {self.value(node.condition)} else {self.value(node.false_value)})"
        if kind == "Call" and node.op.name == "prim.if_then_else":
            condition, yes, no = map(self.value, node.args)
            return f"({yes} if {condition} else {no})"
        if kind == "Call" and node.op.name == "tirx.address_of":
            return f"Pointer({', '.join(map(self.value, (node.args[0].source, *node.args[0].indices)))})"
        if kind == "Call" and node.op.name == "tirx.call_extern":
            name, *numbers = node.args[0].value.rsplit("_", 2)  # pack_pairs_<lanes>_<step>
            return f"{name}({', '.join([*numbers, *map(self.value, node.args[1:])])})"
        if kind == "Call" and node.op.name == "tirx.tvm_call_packed":
            return f"packed({', '.join(map(self.value, node.args))})"
        raise NotImplementedError(f"{kind}: {node}")


def _type(node) -> str:
    return str(node.ty.dtype)
