"""Step 1: a structure for the blocks of a PrimFunc, by `s_tir.Schedule`, which checks that every step is legal."""

import contextlib
from collections.abc import Iterator

import tvm
from tvm import ir, s_tir, tirx
from tvm.s_tir.dlight.analysis import normalize_prim_func

from .block import Axis, Block, NotUnderstood, fuse, known_steps
from .constants import CHUNK, COLUMNS, FEW, PARTIAL, SERIAL, TASKS, TILE, VECTOR, WAYS
from .nodes import collect, is_number, substitute
from .products import find_product, tile_product
from .reductions import cut

EFFECTS = {"tirx.tvm_call_packed", "tirx.tvm_call_cpacked", "tirx.call_extern"}  # not to be called in parallel


def unaligned(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func` with parameters aligned to their elements only, see `tir_kernels.buffers`. Raises NotUnderstood for strides."""
    if any(isinstance(param.ty, tirx.BufferType) and param.strides for param in func.params):
        raise NotUnderstood("a parameter has strides")
    buffers = {
        param: tirx.decl_buffer(param.shape, param.dtype, param.name, data_alignment=tvm.DataType(param.dtype).itemsize)
        for param in func.params
        if isinstance(param.ty, tirx.BufferType)
    }
    body = substitute(func.body, buffers)
    return tirx.PrimFunc([buffers.get(param, param) for param in func.params], body, func.ret_type, func.attrs)


def schedule_blocks(func: tirx.PrimFunc, tile: bool = True, share_rows: bool = True) -> tirx.PrimFunc:
    """`func` with its blocks in nests of loops, some of them annotated for `finish`.

    `tile`: matrix products in register tiles; `share_rows`: blocks that work row by row in one loop over the rows. Raises
    NotUnderstood, and what `s_tir.Schedule` raises.
    """
    if not isinstance(func.body, s_tir.SBlockRealize):
        raise NotUnderstood("its body is no block")
    if called := sorted(EFFECTS & {getattr(call.op, "name", "") for call in collect(func.body, ir.Call)}):
        raise NotUnderstood(f"it calls {', '.join(called)}")
    sch = s_tir.Schedule(tvm.IRModule({"main": func}), error_render_level="fast")
    if normalize_prim_func(sch) is None:
        raise NotUnderstood("its blocks are no nests of loops over their axes")
    root = sch.get_sblock(func.body.block.name_hint)
    results = set(func.params)
    _inline(sch, root, results)
    done = set()
    for rv in sch.get_child_blocks(root):
        block = Block(sch, rv) if sch.get(rv).name_hint not in done else None
        if block is None or not block.reduced or len(block.stores) != 1:
            continue
        if tile and (product := find_product(block)):
            done |= tile_product(sch, block, *product)
            continue
        if block.stores[0].buffer in results and str(block.stores[0].buffer.dtype) in ("bfloat16", "float16"):
            copy = sch.cache_write(rv, 0, "global")  # sums are float32, see `lower`
            if not len(block.stores[0].buffer.shape):
                sch.add_unit_loop(copy)  # `rfactor` fails beside a block without loops
            block = Block(sch, rv)
        done |= cut(sch, block)
    blocks = [Block(sch, rv) for rv in sch.get_child_blocks(root) if sch.get(rv).name_hint not in done]
    for anchor, members, rows in _groups(sch, blocks, share_rows):
        _nest(sch, anchor, members, rows)
    return sch.mod["main"]


def _inline(sch: s_tir.Schedule, root: s_tir.schedule.SBlockRV, results: set) -> None:
    """Compute what one block makes for another where it is used, unless it would then be computed more than once."""
    for rv in sch.get_child_blocks(root):
        block = Block(sch, rv)
        if block.reduced or len(block.stores) != 1 or block.stores[0].buffer in results:
            continue
        users = [Block(sch, user) for user in sch.get_consumers(rv)]
        moves = isinstance(block.stores[0].value, ir.TensorLoad | tirx.FloatImm | tirx.IntImm)
        once = len(users) == 1 and block.analyzer.can_prove_equal(_steps(users[0]), _steps(block))
        cheap = not any(user.reduced for user in users) and not collect(block.stores[0].value, (ir.Call, tirx.Div))
        if users and (moves or once or cheap):
            with contextlib.suppress(s_tir.ScheduleError):
                sch.compute_inline(rv)


def _steps(block: Block) -> tirx.Expr:
    steps = tirx.IntImm("int64", 1)
    for axis in block.axes:
        steps = steps * axis.extent
    return steps


def _groups(sch: s_tir.Schedule, blocks: list[Block], share_rows: bool) -> Iterator[tuple[Block, list[Block], int]]:
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
                if shared and (known_steps(block.axes[:shared]) or TASKS) >= 8:
                    members.append(block)
                    rows = shared
        for member in members:
            rest.remove(member)
        yield anchor, members, rows if members else 0


def _leading(block: Block, anchor: Block) -> int:
    """How many leading axes of a block can be a loop over rows that it shares with `anchor`.

    A reduction keeps its innermost axis to itself and has no rows if it is across them; others leave an axis to the anchor.
    """
    if not block.reduced:
        return min(len(block.axes), len(anchor.axes) - 1)
    inner = block.innermost()
    return next(place for place, axis in enumerate(block.axes) if axis.reduce) if inner and inner.reduce else 0


def _shared(block: Block, user: Block) -> int:
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


def _nest(sch: s_tir.Schedule, anchor: Block, members: list[Block], rows: int) -> None:
    """Arrange the loops of an anchor with its members inside, and run the outer ones in parallel."""
    loops = [axis.loop for axis in anchor.axes]
    for member in members:
        sch.compute_at(member.rv, loops[rows - 1], preserve_unit_loops=True)
    sums = [_arrange(sch, member, sch.get_loops(member.rv)[-len(member.axes) :], rows)[1] for member in members]
    outer, first = _arrange(sch, anchor, loops, rows)
    steps = [block.steps for block in (anchor, *members)]
    if outer and (None in steps or sum(steps) >= SERIAL):
        sch.parallel(fuse(sch, outer))
    for block, loop in zip((*members, anchor), (*sums, first), strict=True):
        if loop is not None:  # from here on a block is no longer one that `Schedule` could analyse
            start = sch.decompose_reduction(block.rv, loop)
            inner = block.innermost()
            if inner and not inner.reduce:
                sch.annotate(sch.get_loops(start)[-1], VECTOR, 1)


def _arrange(sch: s_tir.Schedule, block: Block, loops: list, rows: int) -> tuple[list, s_tir.schedule.LoopRV | None]:
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
    last = fuse(sch, [loop_of[axis.var] for axis in merged])
    parallel, sums = ([loop_of[axis.var] for axis in axes] for axes in (outer, reduced))
    most, chunk = (FEW, COLUMNS) if block.reduced else (CHUNK, CHUNK)
    if not rows and not inner.reduce and (known_steps(merged) or most + 1) > most:
        task, last = sch.split(last, [None, chunk])
        parallel.append(task)
        if sums:
            sch.reorder(task, *sums)
    sch.annotate(last, PARTIAL if inner.reduce else VECTOR, 1)
    return loops[:rows] or parallel, next(iter(sums), last) if block.reduced else None


def _across(block: Block, inner: Axis) -> Axis | None:
    """The axis along which some load is contiguous that is not so along `inner`: the other side of a transposition."""
    for offset in block.read:
        stride = block.stride(offset, inner)
        if stride is not None and not is_number(stride, 0) and not is_number(stride, 1):
            for axis in block.results:
                if is_number(block.stride(offset, axis), 1) and all((a.size or TILE) >= TILE for a in (axis, inner)):
                    return axis
    return None


def _tiles(sch: s_tir.Schedule, block: Block, loop_of: dict, inner: Axis, across: Axis) -> list:
    """Tiles of a transposition, in which every cache line that is read is used whole."""
    others = [loop_of[axis.var] for axis in block.results if axis is not inner and axis is not across]
    rows, row = sch.split(loop_of[across.var], [None, TILE])
    columns, column = sch.split(loop_of[inner.var], [None, WAYS])
    sch.reorder(*others, rows, columns, row, column)
    sch.annotate(column, VECTOR, 1)
    return [*others, rows, columns]
