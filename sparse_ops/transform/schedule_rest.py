"""A schedule for every kernel that is not hand-written: what Relax's own legalization and fusion leave behind.

Three steps, each on one PrimFunc:

1. `_schedule` gives its blocks a structure by `s_tir.Schedule`, which checks that every step is legal: producers are inlined,
   blocks that work row by row share one loop over the rows, the outer loops are fused and run in parallel, the innermost
   one is contiguous in memory. Large reductions to few results are cut into parts of fixed size, so that their bits do not
   depend on the number of threads.
2. `_lower` takes the blocks away, and bfloat16 between the loads and the stores with them.
3. `_finish` rewrites the innermost loops: vectors of fixed width with a remainder; sums in interleaved partial sums; `exp`,
   `tanh`, `sigmoid` and `erf` of float32 as polynomials, which vectorize, where the C library's functions do not.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from math import prod

import tvm
import tvm_ffi
from tvm import ir, s_tir, tirx
from tvm.s_tir.dlight.analysis import normalize_prim_func
from tvm.script.ir_builder import IRBuilder
from tvm.sym import Analyzer, detect_linear_equation
from tvm.sym.analyzer import ProofStrength
from tvm.tirx.script import builder as T

from tir_kernels.cpu import vector_math as activation
from tir_kernels.cpu.isa import Isa, Tile
from tir_kernels.cpu.rows import WIDTH

from ..op.register import SCHEDULED, with_root_block

VECTOR, PARTIAL, FUSE = "sparse_ops.vector", "sparse_ops.partial", "sparse_ops.fuse"  # loops that `_finish` rewrites
SERIAL = 16384  # below as many steps, starting threads costs more than they bring
CHUNK = 4096  # elements of one task of an elementwise kernel
FEW = 2048  # a reduction to at most as many results may be cut into parts ...
TASKS = 32  # ... if it has fewer independent tasks
PART = 16384  # elements of a part
COLUMNS = 512  # more columns than `FEW` are reduced this many at a time
TILE, WAYS = 16, 8  # of a transposition: a cache line of float32, and as many lines as a cache may hold of one alignment

POLYNOMIALS = {
    "tirx.exp": activation.exp,
    "tirx.tanh": activation.tanh,
    "tirx.erf": activation.erf,
    "tirx.sigmoid": lambda x: T.float32(1) / (T.float32(1) + activation.exp(-x)),
}
REDUCES = {tirx.IterVar.DataPar: False, tirx.IterVar.CommReduce: True}  # blocks with other axes are not understood
EFFECTS = {"tirx.tvm_call_packed", "tirx.tvm_call_cpacked", "tirx.call_extern"}  # not to be called in parallel
COMPARISONS = (tirx.LT, tirx.LE, tirx.GT, tirx.GE)
_realize_of = tvm.get_global_func("s_tir.schedule.GetSBlockRealize")


@tvm.transform.module_pass(opt_level=0, name="ScheduleRest")
class ScheduleRest:
    """Module pass: schedule every PrimFunc that is not yet scheduled, for the CPU target in scope.

    It belongs behind LegalizeOps, FuseOps and FuseTIR, and behind RewriteDataflowReshape, which knows reshapes by their
    unscheduled form and makes them free. Shapes may be symbolic. What it does not understand stays as it is.
    """

    def transform_module(self, mod: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        for gv, func in mod.functions_items():
            if isinstance(func, tirx.PrimFunc) and not (func.attrs and SCHEDULED in func.attrs):
                mod.update_func(gv, _scheduled(func))
        return mod


def _scheduled(func: tirx.PrimFunc) -> tirx.PrimFunc:
    for options in ({}, {"tile": False}, {"tile": False, "share_rows": False}):
        try:
            schedule = _schedule(_unaligned(func), **options)
            return func if schedule is None else _finish(_lower(schedule.mod["main"]))
        except Exception:  # a step that `Schedule` refuses, or a check inside of TVM: slow is better than not at all
            continue
    return func


def _unaligned(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with parameters aligned to their elements only, see `tir_kernels.buffers`."""
    if any(isinstance(param.ty, tirx.BufferType) and param.strides for param in func.params):
        raise ValueError("expected compact buffers")
    buffers = {
        param: tirx.decl_buffer(param.shape, param.dtype, param.name, data_alignment=tvm.DataType(param.dtype).itemsize)
        for param in func.params
        if isinstance(param.ty, tirx.BufferType)
    }
    body = _substitute(func.body, buffers)
    return tirx.PrimFunc([buffers.get(param, param) for param in func.params], body, func.ret_type, func.attrs)


def _substitute(node, values: dict):
    return tvm_ffi.structural_map(node, (ir.Var, lambda var: values.get(var, var)))


@dataclass(frozen=True)
class _Axis:
    """A dimension of a block's iteration space: a result's (`reduce` False) or one that is summed over."""

    var: tirx.Var
    extent: tirx.Expr
    loop: s_tir.schedule.LoopRV
    reduce: bool

    @property
    def size(self) -> int | None:
        """The extent, if it is known."""
        return int(self.extent) if isinstance(self.extent, tirx.IntImm) else None


class _Block:
    """What a block reads and writes, as offsets into flat buffers."""

    def __init__(self, sch: s_tir.Schedule, rv: s_tir.schedule.SBlockRV):
        self.rv, self.block = rv, sch.get(rv)
        loops = {sch.get(loop).loop_var: loop for loop in sch.get_loops(rv)}
        self.axes = [
            _Axis(iter_var.var, iter_var.dom.extent, loops[value], REDUCES[iter_var.iter_type])
            for iter_var, value in zip(self.block.iter_vars, _realize_of(sch, rv).iter_values, strict=True)
        ]
        self.analyzer = Analyzer()
        for axis in self.axes:
            self.analyzer.bind(axis.var, ir.Range(0, axis.extent))
        self.loads, self.stores = _collect(self.block.body, ir.TensorLoad), _collect(self.block.body, tirx.BufferStore)
        self.read = [self._offset(load.source, load.indices) for load in self.loads]
        self.written = [self._offset(store.buffer, store.indices) for store in self.stores]
        # axes that values depend on other than by an address, such as the borders of a concatenation
        values = tvm_ffi.structural_map(
            [store.value for store in self.stores], (ir.TensorLoad, lambda load: tirx.const(0, load.ty.dtype))
        )
        self.in_values = set(_collect(values, ir.Var))

    def _offset(self, buffer, indices) -> tirx.Expr:
        offset = tirx.IntImm("int64", 0)
        for size, index in zip(buffer.shape, indices, strict=True):
            offset = offset * size + index
        return self.analyzer.simplify(offset)

    @property
    def results(self) -> list[_Axis]:
        return [axis for axis in self.axes if not axis.reduce]

    @property
    def reduced(self) -> list[_Axis]:
        return [axis for axis in self.axes if axis.reduce]

    @property
    def steps(self) -> int | None:
        """Steps of the whole nest, if known."""
        return _known(self.axes)

    def stride(self, offset: tirx.Expr, axis: _Axis) -> tirx.Expr | None:
        """By how many elements a step along `axis` moves `offset`; None where that is not constant."""
        linear = detect_linear_equation(offset, [axis.var])
        return linear[0] if linear else None

    def contiguous(self, axis: _Axis) -> bool:
        """Whether every load along `axis` is of one element or of neighbours."""
        return all(_is(self.stride(offset, axis), 0) or _is(self.stride(offset, axis), 1) for offset in self.read)

    def merges(self, outer: _Axis, inner: _Axis) -> bool:
        """Whether two neighbouring axes are one axis in every buffer, which costs no division at run time."""

        def one(offset):
            strides = self.stride(offset, outer), self.stride(offset, inner)
            return all(stride is not None for stride in strides) and self.analyzer.can_prove_equal(
                strides[0], strides[1] * inner.extent
            )

        if inner.size is None or {outer.var, inner.var} & self.in_values:
            return False
        return all(one(offset) for offset in self.read + self.written)

    def innermost(self) -> _Axis | None:
        """The axis whose steps are neighbours in memory: of the results where the loads allow it, else reduced."""
        result = next((axis for axis in reversed(self.results) if _is(self.stride(self.written[0], axis), 1)), None)
        if self.reduced and not (result and self.contiguous(result)):
            rows = [axis for axis in self.reduced if self.contiguous(axis) and (axis.size or 8) >= 8]
            return rows[-1] if rows else result
        return result

    def order(self, axes: list[_Axis]) -> tuple[list[_Axis], list[_Axis], list[_Axis]]:
        """`axes` as the loops should go: of the result, reduced, and those that make one contiguous innermost loop."""
        inner = self.innermost()
        outer, reduced = ([axis for axis in axes if axis.reduce is reduce and axis is not inner] for reduce in (False, True))
        merged = [inner] if inner in axes else []
        others = reduced if inner and inner.reduce else outer
        while merged and others and self.merges(others[-1], merged[0]):
            merged.insert(0, others.pop())
        return outer, reduced, merged


def _is(expr, number: int) -> bool:
    return isinstance(expr, tirx.IntImm) and expr.value == number


def _collect(node, kind) -> list:
    found = []
    tvm_ffi.structural_walk(node, (kind, found.append))
    return found


def _schedule(func: tirx.PrimFunc, tile: bool = True, share_rows: bool = True) -> s_tir.Schedule | None:
    """`tile`: matrix products in register tiles; `share_rows`: blocks that work row by row in one loop over the rows."""
    sch = s_tir.Schedule(tvm.IRModule({"main": func}))
    calls = {getattr(call.op, "name", "") for call in _collect(func.body, ir.Call)}
    if calls & EFFECTS or normalize_prim_func(sch) is None:
        return None
    root = sch.get_sblock(func.body.block.name_hint)
    results = set(func.params)
    _inline(sch, root, results)
    done = set()
    for rv in sch.get_child_blocks(root):
        block = _Block(sch, rv) if sch.get(rv).name_hint not in done else None
        if block is None or not block.reduced or len(block.stores) != 1:
            continue
        if tile and (product := _product(block)):
            done |= _tile(sch, block, *product)
            continue
        if block.stores[0].buffer in results and str(block.stores[0].buffer.dtype) == "bfloat16":
            sch.cache_write(rv, 0, "global")  # sums are float32, see `_lower`
            block = _Block(sch, rv)
        done |= _cut(sch, block)
    blocks = [_Block(sch, rv) for rv in sch.get_child_blocks(root) if sch.get(rv).name_hint not in done]
    for anchor, members, rows in _groups(sch, blocks, share_rows):
        _nest(sch, anchor, members, rows)
    return sch


def _inline(sch: s_tir.Schedule, root: s_tir.schedule.SBlockRV, results: set) -> None:
    """Compute what one block makes for another where it is used, unless it would then be computed more than once."""
    for rv in sch.get_child_blocks(root):
        block = _Block(sch, rv)
        if block.reduced or len(block.stores) != 1 or block.stores[0].buffer in results:
            continue
        users = [_Block(sch, user) for user in sch.get_consumers(rv)]
        moves = isinstance(block.stores[0].value, ir.TensorLoad | tirx.FloatImm | tirx.IntImm)
        once = len(users) == 1 and block.analyzer.can_prove_equal(_steps(users[0]), _steps(block))
        cheap = not any(user.reduced for user in users) and not _collect(block.stores[0].value, (ir.Call, tirx.Div))
        if users and (moves or once or cheap):
            with contextlib.suppress(s_tir.ScheduleError):
                sch.compute_inline(rv)


def _steps(block: _Block) -> tirx.Expr:
    steps = tirx.IntImm("int64", 1)
    for axis in block.axes:
        steps = steps * axis.extent
    return steps


def _cut(sch: s_tir.Schedule, block: _Block) -> set[str]:
    """Cut a large reduction to few results into parts of fixed size, which are reduced in parallel, then together.

    Returns the names of the blocks that are now scheduled, which are none if the reduction stays whole.
    """
    few, inner = _known(block.results), block.innermost()
    if few is None or few > FEW or inner is None or (block.steps or SERIAL * TASKS) < SERIAL * 8:
        return set()
    if (few if inner.reduce else few // COLUMNS) >= TASKS:
        return set()
    outer, reduced, merged = block.order(block.axes)
    sch.reorder(*(axis.loop for axis in (*outer, *reduced, *merged)))
    last = _fuse(sch, [axis.loop for axis in merged])
    whole = all(block.merges(*pair) for pair in itertools.pairwise(reduced))
    sums = reduced if whole else reduced[:1]
    loop = _fuse(sch, [axis.loop for axis in sums]) if sums else last
    step = _known([axis for axis in block.axes if axis not in (sums or merged)])
    part, _ = sch.split(loop, [None, max(1, PART // (step or PART))])
    if outer:
        sch.reorder(part, *(axis.loop for axis in outer))
    parts = sch.rfactor(part, 0)  # scheduled here and now: `Schedule` does not follow the condition of the split for long
    order = sch.get_loops(parts)
    sch.parallel(order[0])
    sch.annotate(order[-1], PARTIAL if inner.reduce else VECTOR, 1)
    start = sch.decompose_reduction(parts, order[len(outer) + 1])
    if not inner.reduce:
        sch.annotate(sch.get_loops(start)[-1], VECTOR, 1)
    return {sch.get(rv).name_hint for rv in (parts, start)}


def _product(block: _Block) -> tuple[_Axis, _Axis] | None:
    """The (row, column) of a matrix product out[.., row, .., column] += left[.., row, .., k] * right[.., k, .., column].

    The axes may stand in any order, except that the column is the innermost one of the result. None for anything else, and
    for what is too small for a register tile.
    """
    factors = [load for load in block.loads if not load.source.same_as(block.stores[0].buffer)]
    column = next((axis for axis in block.results if _is(block.stride(block.written[0], axis), 1)), None)
    value = block.stores[0].value
    plain = all(isinstance(index, tirx.Var) for load in factors for index in load.indices)
    if not (plain and len(factors) == 2 and column and len(block.reduced) == 1):
        return None
    if not (isinstance(value, tirx.Add) and isinstance(value.b, tirx.Mul)) or (block.steps or SERIAL) < SERIAL:
        return None
    left, right = ([axis for axis in block.results if axis.var in load.indices] for load in factors)
    if column in left:
        left, right = right, left
    rows = [axis for axis in left if axis not in right]
    if not rows or column in left or (column.size or 8) < 8 or (rows[-1].size or 4) < 4:
        return None
    return rows[-1], column


def _tile(sch: s_tir.Schedule, block: _Block, row: _Axis, column: _Axis) -> set[str]:
    """A matrix product by register tiles, whose rows and columns are padded, the right matrix packed in panels of columns.

    Returns the names of the blocks that are now scheduled.
    """
    tile = Tile.of(Isa.of(), column.size or FEW)
    padding = {row: tile.rows, column: tile.cols}
    sch.pad_einsum(block.rv, [padding.get(axis, 1) for axis in block.axes])
    padded = _Block(sch, block.rv)
    row, column = (padded.axes[block.axes.index(axis)] for axis in (row, column))
    (inner,) = padded.reduced

    place, right = next(pair for pair in enumerate(padded.block.reads) if column.var in [dim.min for dim in pair[1].region])
    dims = [dim.min for dim in right.region]
    if right.source in {load.source for load in block.loads}:  # it needed no padding
        pack = sch.cache_read(block.rv, place, "global")
    else:
        pack = next(rv for rv in sch.get_producers(block.rv) if sch.get(rv).writes[0].source.same_as(right.source))

    def panels(*index):
        at = dict(zip(dims, index, strict=True))
        others = [value for dim, value in at.items() if dim not in (inner.var, column.var)]
        return *others, at[column.var] // tile.cols, at[inner.var], at[column.var] % tile.cols

    panels = tirx.IndexMap.from_func(panels, ndim=len(dims))
    sch.transform_layout(block.rv, ("read", place), panels)
    sch.transform_block_layout(pack, panels)

    last = copy = sch.cache_write(block.rv, 0, "global")  # sums are registers, `copy` is what follows them
    chain = []
    while len(users := sch.get_consumers(last)) == 1 and not _Block(sch, users[0]).reduced:
        chain.append(last := users[0])
    for rv in chain[:-1]:
        sch.compute_inline(rv)
    tail = chain[-1:]

    loop_of = dict(zip((axis.var for axis in padded.axes), sch.get_loops(block.rv), strict=True))
    panel, across = sch.split(loop_of[column.var], [None, tile.cols])
    group, down = sch.split(loop_of[row.var], [None, tile.rows])
    tasks = [*(loop_of[axis.var] for axis in padded.results if axis not in (row, column)), panel, group]
    sch.reorder(*tasks, loop_of[inner.var], down, across)
    for rv in (copy, *tail):
        sch.reverse_compute_at(rv, group, preserve_unit_loops=True)
    for rv in (block.rv, copy):
        *_, down, across = sch.get_loops(rv)
        sch.unroll(down)
        sch.vectorize(across)
    start = sch.decompose_reduction(block.rv, loop_of[inner.var])  # its loops are as those of the block
    for rv in tail:
        sch.annotate(sch.get_loops(rv)[-1], VECTOR, 1)
    for loop in tasks:
        sch.annotate(loop, FUSE, 1)
    return {sch.get(rv).name_hint for rv in (start, block.rv, copy, *tail)}


def _fuse(sch: s_tir.Schedule, loops: list) -> s_tir.schedule.LoopRV:
    """`sch.fuse`, which would also rewrite a single loop."""
    return sch.fuse(*loops) if len(loops) > 1 else loops[0]


def _known(axes: list[_Axis]) -> int | None:
    """The product of the axes' sizes, if they are all known."""
    return None if None in (sizes := [axis.size for axis in axes]) else prod(sizes)


def _groups(sch: s_tir.Schedule, blocks: list[_Block], share_rows: bool) -> Iterator[tuple[_Block, list[_Block], int]]:
    """Blocks that can share a loop over rows: (the last of them, those before it, last first; number of leading axes)."""
    rest = list(blocks)
    while rest:
        anchor = rest.pop()
        members, rows = [], _leading(anchor, anchor) if anchor.reduced else len(anchor.axes)
        for block in reversed(rest) if share_rows else ():
            made = {store.buffer for store in block.stores}
            users = [user for user in blocks if user is not block and made & {load.source for load in user.loads}]
            known = len(users) == len(sch.get_consumers(block.rv)) > 0
            if known and all(user is anchor or user in members for user in users):
                shared = min([rows, _leading(block, anchor), *(_shared(block, user) for user in users)])
                if shared and (_known(block.axes[:shared]) or TASKS) >= 8:
                    members.append(block)
                    rows = shared
        for member in members:
            rest.remove(member)
        yield anchor, members, rows if members else 0


def _leading(block: _Block, anchor: _Block) -> int:
    """How many leading axes of a block can be a loop over rows that it shares with `anchor`.

    A reduction keeps its innermost axis to itself and has no rows if it is across them; others leave an axis to the anchor.
    """
    if not block.reduced:
        return min(len(block.axes), len(anchor.axes) - 1)
    inner = block.innermost()
    return next(place for place, axis in enumerate(block.axes) if axis.reduce) if inner and inner.reduce else 0


def _shared(block: _Block, user: _Block) -> int:
    """How many leading axes of `block` are those of `user` wherever it reads what the block writes."""
    count = 0
    for mine, theirs in zip(block.axes, user.axes, strict=False):
        pairs = [
            (store.indices[count : count + 1], load.indices[count : count + 1])
            for store in block.stores
            for load in user.loads
            if load.source.same_as(store.buffer)
        ]
        same = all(a and a[0].same_as(mine.var) and b[0].same_as(theirs.var) for a, b in pairs)
        if not same or not block.analyzer.can_prove_equal(mine.extent, theirs.extent):
            break
        count += 1
    return count


def _nest(sch: s_tir.Schedule, anchor: _Block, members: list[_Block], rows: int) -> None:
    """Arrange the loops of an anchor with its members inside, and run the outer ones in parallel."""
    loops = [axis.loop for axis in anchor.axes]
    for member in members:
        sch.compute_at(member.rv, loops[rows - 1], preserve_unit_loops=True)
    sums = [_arrange(sch, member, sch.get_loops(member.rv)[-len(member.axes) :], rows)[1] for member in members]
    outer, first = _arrange(sch, anchor, loops, rows)
    steps = [block.steps for block in (anchor, *members)]
    if outer and (None in steps or sum(steps) >= SERIAL):
        sch.parallel(_fuse(sch, outer))
    for block, loop in zip((*members, anchor), (*sums, first), strict=True):
        if loop is not None:  # from here on a block is no longer one that `Schedule` could analyse
            start = sch.decompose_reduction(block.rv, loop)
            if not block.innermost().reduce:
                sch.annotate(sch.get_loops(start)[-1], VECTOR, 1)


def _arrange(sch: s_tir.Schedule, block: _Block, loops: list, rows: int) -> tuple[list, s_tir.schedule.LoopRV | None]:
    """Order the loops of a block, of which the first `rows` belong to several blocks.

    Returns those that may run in parallel, and the first one that reduces, before which the result is to be initialised.
    """
    loop_of = dict(zip((axis.var for axis in block.axes), loops, strict=True))
    inner = block.innermost()
    outer, reduced, merged = block.order(block.axes[rows:])
    if not merged:
        return loops[:rows], loop_of[reduced[0].var] if reduced else None
    if not rows and not block.reduced and (across := _across(block, inner)):
        return _tiles(sch, block, loop_of, inner, across), None

    sch.reorder(*(loop_of[axis.var] for axis in (*outer, *reduced, *merged)))
    last = _fuse(sch, [loop_of[axis.var] for axis in merged])
    parallel, sums = ([loop_of[axis.var] for axis in axes] for axes in (outer, reduced))
    most, chunk = (FEW, COLUMNS) if block.reduced else (CHUNK, CHUNK)
    if not rows and not inner.reduce and (_known(merged) or most + 1) > most:
        task, last = sch.split(last, [None, chunk])
        parallel.append(task)
        if sums:
            sch.reorder(task, *sums)
    sch.annotate(last, PARTIAL if inner.reduce else VECTOR, 1)
    return loops[:rows] or parallel, next(iter(sums), last) if block.reduced else None


def _across(block: _Block, inner: _Axis) -> _Axis | None:
    """The axis along which some load is contiguous that is not so along `inner`: the other side of a transposition."""
    for offset in block.read:
        stride = block.stride(offset, inner)
        if stride is not None and not _is(stride, 0) and not _is(stride, 1):
            for axis in block.results:
                if _is(block.stride(offset, axis), 1) and all((a.size or TILE) >= TILE for a in (axis, inner)):
                    return axis
    return None


def _tiles(sch: s_tir.Schedule, block: _Block, loop_of: dict, inner: _Axis, across: _Axis) -> list:
    """Tiles of a transposition, in which every cache line that is read is used whole."""
    others = [loop_of[axis.var] for axis in block.results if axis is not inner and axis is not across]
    rows, row = sch.split(loop_of[across.var], [None, TILE])
    columns, column = sch.split(loop_of[inner.var], [None, WAYS])
    sch.reorder(*others, rows, columns, row, column)
    sch.annotate(column, VECTOR, 1)
    return [*others, rows, columns]


_LOWERING = tvm.transform.Sequential(
    [
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.StmtSimplify(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.BF16ComputeLegalize(),  # also makes float32 of bfloat16 buffers that stay inside
    ]
)


def _lower(func: tirx.PrimFunc) -> tirx.PrimFunc:
    return _LOWERING(tvm.IRModule({"main": func}))["main"]


def _finish(func: tirx.PrimFunc) -> tirx.PrimFunc:
    body = _simplified(func, _proven(func.body)).body
    body = tvm_ffi.structural_map(body, (tirx.For, _loop))
    body = tvm_ffi.structural_mutate(body, (tirx.For, _fused))
    body = tvm_ffi.structural_map(body, [(ir.Call, _polynomial), (tirx.SeqStmt, _sized)])
    return with_root_block(_simplified(func, body)).with_attr(SCHEDULED, True)


def _simplified(func: tirx.PrimFunc, body: tirx.Stmt) -> tirx.PrimFunc:
    return s_tir.transform.StmtSimplify()(tvm.IRModule({"main": func.with_body(body)}))["main"]


def _proven(body: tirx.Stmt) -> tirx.Stmt:
    """`body` without comparisons that follow from the bounds of the loops, symbolic ones too, which the simplifier leaves."""
    analyzer = Analyzer()

    def loop(node, mutator):
        analyzer.bind(node.loop_var, ir.Range(node.min, node.extent))
        return mutator.default_mutate(node)

    def comparison(node, mutator):
        return tirx.const(True, "bool") if analyzer.can_prove(node, ProofStrength.SYMBOLIC_BOUND) else node

    return tvm_ffi.structural_mutate(body, [(tirx.For, loop), (COMPARISONS, comparison)])


def _sized(sequence: tirx.SeqStmt) -> tirx.SeqStmt:
    """Access buffers of symbolic size under another name than they are allocated.

    TVM would once more infer how much of each is used; for loops that are fused by now its formulas are wrong, or divide by
    sizes that are zero. A last access, which later passes remove, keeps the memory from being used twice before.
    """
    statements, last = [], []
    for statement in sequence.seq:
        buffer = statement.buffer if isinstance(statement, tirx.AllocBuffer) else None
        if buffer is None or all(isinstance(dim, tirx.IntImm) for dim in buffer.shape):
            statements.append(statement)
            continue
        memory = tirx.decl_buffer(buffer.shape, buffer.dtype, buffer.name)
        statements += [tirx.AllocBuffer(memory), tirx.DeclBuffer(buffer, data=memory.data)]
        last.append(tirx.Evaluate(tirx.BufferLoad(memory, [tirx.IntImm("int64", 0)] * len(buffer.shape))))
    return tirx.SeqStmt([*statements, *last])


def _polynomial(call: ir.Call) -> tirx.Expr:
    name = getattr(call.op, "name", None)
    if name not in POLYNOMIALS or str(call.ty.dtype) != "float32":
        return call
    argument, bindings, result = _template(name)
    values, lets = {argument: call.args[0]}, []
    for var, value in bindings:
        lets.append((tirx.Var(var.name, "float32"), _substitute(value, values)))
        values[var] = lets[-1][0]
    result = _substitute(result, values)
    for var, value in reversed(lets):
        result = tirx.Let(var, value, result)
    return result


@cache
def _template(name: str) -> tuple[tirx.Var, list[tuple[tirx.Var, tirx.Expr]], tirx.Expr]:
    """A function of `tir_kernels.cpu.vector_math` taken apart: its argument, the variables it binds in turn, its result."""
    argument = tirx.Var("x", "float32")
    with IRBuilder() as builder, T.prim_func():
        T.evaluate(POLYNOMIALS[name](argument))
    body = builder.get().body
    *bindings, result = body.seq if isinstance(body, tirx.SeqStmt) else [body]
    return argument, [(binding.var, binding.value) for binding in bindings], result.value


def _loop(loop: tirx.For) -> tirx.Stmt:
    if VECTOR not in loop.annotations and PARTIAL not in loop.annotations:
        return loop
    if str(loop.loop_var.ty.dtype) != "int64":
        return _plain(loop)
    if PARTIAL in loop.annotations:
        return _partial_loop(loop)
    named = _collect(loop.body, (tirx.Bind, tirx.AllocBuffer))  # only once, so the body cannot stand in several loops
    return _plain(loop) if named else _vector_loop(loop)


def _fused(loop: tirx.For, mutator) -> tirx.Stmt:
    """One parallel loop over a nest. `Schedule` fuses loops itself, but then cannot simplify the conditions inside any more."""
    if FUSE not in loop.annotations:
        return mutator.default_mutate(loop)
    nest = []
    while isinstance(loop, tirx.For) and FUSE in loop.annotations:
        nest.append(loop)
        loop = loop.body

    def body(task):
        values = {}
        for level in reversed(nest):
            values[level.loop_var] = task % level.extent if level is not nest[0] else task
            task = task // level.extent
        return _substitute(loop, values)

    return _for(prod([level.extent for level in nest], start=tirx.IntImm("int64", 1)), body, tirx.ForKind.PARALLEL)


def _for(extent, body: Callable, kind=tirx.ForKind.SERIAL) -> tirx.Stmt:
    """`for i in range(extent): body(i)`"""
    var = tirx.Var("i", "int64")
    return tirx.For(
        var, tirx.IntImm("int64", 0), tirx.IntImm("int64", extent) if isinstance(extent, int) else extent, kind, body(var)
    )


def _strips(start, count, lanes: int, body: Callable) -> list[tirx.Stmt]:
    """body(i) for `count` i from `start` on, in vectors of `lanes`, then the remainder."""
    count = Analyzer().simplify(count)
    whole, rest = Analyzer().simplify(count // lanes), Analyzer().simplify(count % lanes)
    strips = []
    if not _is(whole, 0):
        vector = lambda step: _for(lanes, lambda lane: body(start + step * lanes + lane), tirx.ForKind.VECTORIZED)  # noqa: E731
        strips.append(_for(whole, vector))
    if not _is(rest, 0):
        strips.append(_for(rest, lambda lane: body(start + whole * lanes + lane)))
    return strips or [tirx.Evaluate(0)]


def _plain(loop: tirx.For) -> tirx.For:
    return tirx.For(loop.loop_var, loop.min, loop.extent, loop.kind, loop.body)


def _conjuncts(condition: tirx.Expr) -> list[tirx.Expr]:
    return [*_conjuncts(condition.a), *_conjuncts(condition.b)] if isinstance(condition, tirx.And) else [condition]


def _bounded(loop: tirx.For) -> tuple[tirx.Stmt, tirx.Expr, list] | None:
    """A loop's body without the condition that a split left, the extent it leaves, and the rest of the condition."""
    body, extent, guards = loop.body, loop.extent, []
    if isinstance(body, tirx.IfThenElse):
        for condition in _conjuncts(body.condition):
            if loop.loop_var not in _collect(condition, ir.Var):
                guards.append(condition)
            elif (border := _border(condition, loop.loop_var)) and border[1]:
                extent = tirx.max(tirx.min(extent, border[0]), 0)
            else:
                return None
        if body.else_case is not None:
            return None
        body = body.then_case
    return body, extent, guards


def _border(condition: tirx.Expr, var: tirx.Var) -> tuple[tirx.Expr, bool] | None:
    """(b, holds): a comparison that is `holds` where var < b, and the opposite from there on."""
    if not isinstance(condition, COMPARISONS):
        return None
    low, high = (condition.a, condition.b) if isinstance(condition, tirx.LT | tirx.LE) else (condition.b, condition.a)
    linear = detect_linear_equation(high - low, [var])  # the condition says that this is positive, or not negative
    if not linear or not (_is(linear[0], 1) or _is(linear[0], -1)):
        return None
    strict = isinstance(condition, tirx.LT | tirx.GT)
    if _is(linear[0], -1):  # var < rest, or var <= rest
        return (linear[1] if strict else linear[1] + 1), True
    return (1 - linear[1] if strict else -linear[1]), False


def _sequence(statements: list[tirx.Stmt]) -> tirx.Stmt:
    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def _guarded(body: tirx.Stmt, guards: list[tirx.Expr]) -> tirx.Stmt:
    for guard in guards:
        body = tirx.IfThenElse(guard, body, None)
    return body


def _vector_loop(loop: tirx.For) -> tirx.Stmt:
    """In vectors; between the borders of a concatenation or a padding, each side for itself."""
    if (found := _bounded(loop)) is None:
        return _plain(loop)
    body, extent, guards = found
    borders = []
    for condition in _collect(body, COMPARISONS):
        known = any(tvm_ffi.structural_equal(condition, other) for other, _, _ in borders)
        if not known and (border := _border(condition, loop.loop_var)):
            borders.append((condition, *border))
    if all(isinstance(border, tirx.IntImm) for _, border, _ in borders):
        borders.sort(key=lambda entry: entry[1].value)
    elif len(borders) > 1:
        borders = []
    strips, start = [], tirx.IntImm("int64", 0)
    for place in range(len(borders) + 1):
        end = tirx.max(tirx.min(borders[place][1], extent), start) if place < len(borders) else extent
        truth = [(condition, holds == (place <= k)) for k, (condition, _, holds) in enumerate(borders)]
        part = _decided(body, truth)
        strips += _strips(start, end - start, Isa.of().lanes, lambda i, part=part: _substitute(part, {loop.loop_var: i}))
        start = end
    return _guarded(_sequence(strips), guards)


def _decided(body: tirx.Stmt, truth: list) -> tirx.Stmt:
    """`body` with comparisons replaced by their known values."""

    def decide(condition):
        return next(
            (tirx.const(value, "bool") for known, value in truth if tvm_ffi.structural_equal(condition, known)), condition
        )

    return tvm_ffi.structural_map(body, (COMPARISONS, decide)) if truth else body


@dataclass
class _Partial:
    """One accumulator of a reduction, acc = join(acc, value), and the interleaved partial results that replace it."""

    acc: ir.TensorLoad
    join: type
    value: tirx.Expr
    partial: tirx.Buffer

    def at(self, lane) -> tirx.Expr:
        return tirx.BufferLoad(self.partial, [lane])

    def start(self, lane) -> tirx.Stmt:
        neutral = tirx.const(0, self.acc.ty.dtype) if self.join is tirx.Add else self.acc  # joined twice, max and min stay
        return tirx.BufferStore(self.partial, neutral, [lane])

    def add(self, lane, value: tirx.Expr) -> tirx.Stmt:
        return tirx.BufferStore(self.partial, self.join(self.at(lane), value), [lane])

    def finish(self) -> tirx.Stmt:
        low, high = (self.at(tirx.IntImm("int64", lane)) for lane in (0, 1))
        return tirx.BufferStore(self.acc.source, self.join(self.acc, self.join(low, high)), self.acc.indices)


def _partial_loop(loop: tirx.For) -> tirx.Stmt:
    """A reduction in vectors of partial results, which are then joined pairwise."""
    bounded = _bounded(loop)
    size = loop.extent.value if isinstance(loop.extent, tirx.IntImm) else WIDTH
    width = WIDTH if size >= WIDTH else 8
    partials = _partials(bounded[0], width) if bounded and size >= 8 else None
    if partials is None:
        return _plain(loop)
    _, count, guards = bounded

    def add(i):  # i is a multiple of the width, plus a lane
        return _sequence([part.add(i % width, _substitute(part.value, {loop.loop_var: i})) for part in partials])

    def fold(half):
        step = lambda lane: _sequence([part.add(lane, part.at(lane + half)) for part in partials])  # noqa: E731
        return _for(half, step, tirx.ForKind.VECTORIZED)

    steps = [
        *(tirx.AllocBuffer(part.partial) for part in partials),
        _for(width, lambda lane: _sequence([part.start(lane) for part in partials]), tirx.ForKind.VECTORIZED),
        *_strips(tirx.IntImm("int64", 0), count, width, add),
        *(fold(half) for half in (16, 8, 4, 2) if half < width),
        *(part.finish() for part in partials),
    ]
    return _guarded(_sequence(steps), guards)


def _partials(body: tirx.Stmt, width: int) -> list[_Partial] | None:
    """The accumulators of a loop's body; None for anything but sums, maxima and minima that know nothing of each other."""
    bound, found = {}, []
    for statement in body.seq if isinstance(body, tirx.SeqStmt) else [body]:
        if isinstance(statement, tirx.Bind):
            bound[statement.var] = statement.value
            continue
        value = _substitute(statement.value, bound) if isinstance(statement, tirx.BufferStore) else None
        if not isinstance(value, tirx.Add | tirx.Max | tirx.Min) or not isinstance(value.a, ir.TensorLoad):
            return None
        if not value.a.source.same_as(statement.buffer):
            return None
        partial = tirx.decl_buffer((width,), value.a.ty.dtype, "partial")
        found.append(_Partial(value.a, type(value), value.b, partial))
    written = {part.acc.source for part in found}
    independent = not any(load.source in written for part in found for load in _collect(part.value, ir.TensorLoad))
    return found if independent else None
