"""What a block of a PrimFunc reads and writes along which axis, and which order of loops suits that."""

from dataclasses import dataclass
from math import prod

import tvm
import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.sym import Analyzer, detect_linear_equation

from .nodes import collect, is_number

REDUCES = {tirx.IterVar.DataPar: False, tirx.IterVar.CommReduce: True}  # blocks with other axes are not understood


class NotUnderstood(Exception):
    """What this package cannot schedule; the message says why."""


_realize_of = tvm.get_global_func("s_tir.schedule.GetSBlockRealize")


@dataclass(frozen=True)
class Axis:
    """A dimension of a block's iteration space: a result's (`reduce` False) or one that is summed over."""

    var: tirx.Var
    extent: tirx.Expr
    loop: s_tir.schedule.LoopRV
    reduce: bool

    @property
    def size(self) -> int | None:
        """The extent, if it is known."""
        return int(self.extent) if isinstance(self.extent, tirx.IntImm) else None


class Block:
    """What a block reads and writes, as offsets into flat buffers.

    Raises NotUnderstood for axes that are neither of the result nor reduced, and for a block that stores nothing.
    """

    def __init__(self, sch: s_tir.Schedule, rv: s_tir.schedule.SBlockRV):
        self.rv, self.block = rv, sch.get(rv)
        name, loops = self.block.name_hint, {sch.get(loop).loop_var: loop for loop in sch.get_loops(rv)}
        if unknown := [iter_var for iter_var in self.block.iter_vars if iter_var.iter_type not in REDUCES]:
            raise NotUnderstood(f"block {name}: axis {unknown[0].var.name} is neither of the result nor reduced")
        values = _realize_of(sch, rv).iter_values
        if not all(value in loops or isinstance(value, tirx.IntImm) for value in values):
            raise NotUnderstood(f"block {name}: an axis has no loop of its own")
        self.axes = [
            Axis(iter_var.var, iter_var.dom.extent, loops[value], REDUCES[iter_var.iter_type])
            for iter_var, value in zip(self.block.iter_vars, values, strict=True)
            if value in loops  # the one step of a scalar has none
        ]
        self.analyzer = Analyzer()
        for axis in self.axes:
            self.analyzer.bind(axis.var, ir.Range(0, axis.extent))
        self.loads, self.stores = collect(self.block.body, ir.TensorLoad), collect(self.block.body, tirx.BufferStore)
        if not self.stores:
            raise NotUnderstood(f"block {name}: it stores nothing")
        self.read = [self._offset(load.source, load.indices) for load in self.loads]
        self.written = [self._offset(store.buffer, store.indices) for store in self.stores]
        # axes that values depend on other than by an address, such as the borders of a concatenation
        values = tvm_ffi.structural_map(
            [store.value for store in self.stores], (ir.TensorLoad, lambda load: tirx.const(0, load.ty.dtype))
        )
        self.in_values = set(collect(values, ir.Var))

    def _offset(self, buffer, indices) -> tirx.Expr:
        offset = tirx.IntImm("int64", 0)
        for size, index in zip(buffer.shape, indices, strict=True):
            offset = offset * size + index
        return self.analyzer.simplify(offset)

    @property
    def results(self) -> list[Axis]:
        return [axis for axis in self.axes if not axis.reduce]

    @property
    def reduced(self) -> list[Axis]:
        return [axis for axis in self.axes if axis.reduce]

    @property
    def steps(self) -> int | None:
        """Steps of the whole nest, if known."""
        return known_steps(self.axes)

    def stride(self, offset: tirx.Expr, axis: Axis) -> tirx.Expr | None:
        """By how many elements a step along `axis` moves `offset`; None where that is not constant."""
        linear = detect_linear_equation(offset, [axis.var])
        return linear[0] if linear else None

    def contiguous(self, axis: Axis) -> bool:
        """Whether every load along `axis` is of one element or of neighbours."""
        return all(is_number(self.stride(offset, axis), 0) or is_number(self.stride(offset, axis), 1) for offset in self.read)

    def merges(self, outer: Axis, inner: Axis) -> bool:
        """Whether two neighbouring axes are one axis in every buffer, which costs no division at run time."""

        def one(offset):
            strides = self.stride(offset, outer), self.stride(offset, inner)
            return all(stride is not None for stride in strides) and self.analyzer.can_prove_equal(
                strides[0], strides[1] * inner.extent
            )

        if inner.size is None or {outer.var, inner.var} & self.in_values:
            return False
        return all(one(offset) for offset in self.read + self.written)

    def innermost(self) -> Axis | None:
        """The axis whose steps are neighbours in memory: of the results where the loads allow it, else reduced."""
        result = next((axis for axis in reversed(self.results) if is_number(self.stride(self.written[0], axis), 1)), None)
        if self.reduced and not (result and self.contiguous(result)):
            rows = [axis for axis in self.reduced if self.contiguous(axis) and (axis.size or 8) >= 8]
            return rows[-1] if rows else result
        return result

    def order(self, axes: list[Axis]) -> tuple[list[Axis], list[Axis], list[Axis]]:
        """`axes` as the loops should go: of the result, reduced, and those that make one contiguous innermost loop."""
        inner = self.innermost()
        outer, reduced = ([axis for axis in axes if axis.reduce is reduce and axis is not inner] for reduce in (False, True))
        merged = [inner] if inner in axes else []
        others = reduced if inner and inner.reduce else outer
        while merged and others and self.merges(others[-1], merged[0]):
            merged.insert(0, others.pop())
        return outer, reduced, merged


def known_steps(axes: list[Axis]) -> int | None:
    """The product of the axes' sizes, if they are all known."""
    return None if None in (sizes := [axis.size for axis in axes]) else prod(sizes)


def fuse(sch: s_tir.Schedule, loops: list) -> s_tir.schedule.LoopRV:
    """`sch.fuse`, which would also rewrite a single loop."""
    return sch.fuse(*loops) if len(loops) > 1 else loops[0]
