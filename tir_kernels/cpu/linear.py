"""Packed GEMM over rows: the linear layer.

The register tile of the sparse convolution, blocked for the caches. A task is a block of rows and a range of column panels. The
weights of one panel, over a block of the depth, stay in the L2 cache while the rows pass, and those that come next are fetched
meanwhile, a few lines a step. Sums stay in registers over the block and go through the epilogue from there; only of a depth of
several blocks they wait in scratch for the next one, which changes no bit. Rows are read where they lie; narrow types without a
dot instruction are widened first, once a task.
"""

from dataclasses import dataclass, replace
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..layout import WeightLayout
from ..script import drop_parameters, inline
from ..spec.linear import Linear
from ..vector_math import EMIT
from . import register_tile
from .caches import L2, prefetch
from .guards import check_batch_index
from .isa import Isa, kernel_name
from .register_tile import RegisterTile

BLOCK_DEPTH = 512  # channels that meet in registers at a time: the weights of 64 columns over it are a quarter of the L2 cache
BLOCK_ROWS = 192  # of one task, at most: many, as each brings its weights from the L3 cache or memory
BLOCK_BYTES = 6 * L2  # and what they take as float32 ...
LEAST_ROWS = 48  # ... but for a depth that leaves less than this
GROUP_COLUMNS = 256  # that pass over a block of the depth together, so that its rows come from the L3 cache once for all
CHUNK_COLUMNS = 1024  # of one task, at most
WIDENED_COLUMNS = 256  # and at least, where they have to pay for widening its rows
TASKS = 128  # as long as there are panels; threads then have equal work


def weight_layout(spec: Linear, isa: Isa) -> WeightLayout:
    """[1, panels, steps, cols], see `RegisterTile`."""
    return register_tile.weight_layout((spec.cout, spec.cin), isa, spec.dtype)


def shared(spec: Linear, isa: Isa) -> Linear:
    """One kernel serves any Cin, and all Cout of one register tile."""
    cout = RegisterTile.same_tile(isa, spec.cout, spec.dtype)
    return replace(spec, cin=BLOCK_DEPTH, cout=cout, out_dtype=spec.out_dtype or spec.dtype, products="float")


@dataclass(frozen=True)
class Operands:
    """The buffers of a linear layer; one that the layer lacks is never read."""

    x: tvm.tirx.Buffer  # [N, Cin]
    weight: tvm.tirx.Buffer  # [1, panels, steps, cols]
    bias: tvm.tirx.Buffer  # [Cout]
    residual: tvm.tirx.Buffer  # [N, Cout]
    gate: tvm.tirx.Buffer  # [B, Cout]
    batch_index: tvm.tirx.Buffer  # [N]
    out: tvm.tirx.Buffer  # [N, Cout]


@dataclass(frozen=True)
class Block:
    """The rows of a task: `count` of them from `first` on, with `cin` channels each.

    They are multiplied as the rows of `a` from `base` on. `share`: columns of a step of the weights that a tile fetches ahead.
    """

    first: tvm.tirx.Expr
    count: tvm.tirx.Expr
    cin: tvm.tirx.Expr
    share: tvm.tirx.Expr
    a: tvm.tirx.Buffer  # [rows, Cin]
    base: tvm.tirx.Expr
    sums: tvm.tirx.Buffer | None = None  # [panels, rows, cols], of a few panels, that wait for the next block of the depth
    next: tvm.tirx.Buffer | None = None  # [2], panel and step of the weights that are multiplied next
    slot: tvm.tirx.Expr | None = None  # the place of a panel among those of `sums`
    place: tvm.tirx.Expr | None = None  # the first row of a register tile, counted from `first`


@cache
def linear(spec: Linear, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `Linear`."""
    dtype, has_residual, has_gate, has_index = spec.dtype, spec.has_residual, spec.has_gate, spec.has_index
    out_dtype = spec.out_dtype or dtype
    micro = RegisterTile(isa, BLOCK_DEPTH, spec.cout, dtype)
    cols, lanes = micro.tile.cols, micro.tile.lanes
    block_steps = micro.steps
    most_panels = CHUNK_COLUMNS // cols  # of one task
    group = GROUP_COLUMNS // cols
    tile_rows = micro.tile.rows
    most_rows = -(-BLOCK_ROWS // tile_rows) * tile_rows  # of one task, in whole register tiles
    act = EMIT[spec.activation]
    written_out = spec.activation in ("none", "relu")  # for each vector of a tile; what is longer gets a loop over its rows
    least_panels = WIDENED_COLUMNS // cols if micro.widens else 1

    def tiles(count):
        """The register tiles that cover `count` rows."""
        return (count + (tile_rows - 1)) // tile_rows

    def most_of(cin):
        """The most rows of a task, before they are filled up to whole register tiles: of sizes alone, so memory is planned."""
        return T.max(T.min(T.int64(BLOCK_ROWS), BLOCK_BYTES // 4 // T.max(cin, T.int64(1))), T.int64(LEAST_ROWS))

    def combined(value, row, column, o):
        """The epilogue of one element, before the activation."""
        if has_gate:
            value = value * o.gate[T.Cast("int64", o.batch_index[row]) if has_index else 0, column]
        if has_residual:
            value = value + T.Cast("float32", o.residual[row, column])
        return value

    def finished(value, row, column, o):
        """The epilogue of one element."""
        return T.Cast(out_dtype, act(combined(value, row, column, o)))

    def fetch(o, t, steps):
        """A function that emits, of each step c of a tile, the fetch of its share of the weights that are multiplied next."""
        first = t.place // tile_rows * steps

        def ahead(c):
            prefetch(T.address_of(o.weight[0, t.next[0], t.next[1], (first + c) * t.share]))

        return ahead

    @inline
    def find_rows(rows, t, source, place):
        """The rows of a tile in the block and in what is multiplied. Past the last one it is that one again, stored twice"""
        for r in T.unroll(rows):
            place[r] = T.min(t.place + r, t.count - 1)
            source[r] = t.base + place[r]

    @inline
    def start(acc, columns, panel, step, place, o, t):
        """acc[r, :] = bias, or the sums so far"""
        if step == 0:
            acc.load(lambda r, column: o.bias[panel * cols + column])
        else:
            acc.load(lambda r, column: t.sums[t.slot, place[r], column])

    @inline
    def keep(acc, place, t):
        acc.store(lambda value, r, column: T.buffer_store(t.sums, value, [t.slot, place[r], column]))

    @inline
    def finish(acc, panel, place, o, t):
        """out[first + place[r], :] of one panel, from registers"""
        acc.store(
            lambda value, r, column: T.buffer_store(
                o.out,
                finished(value, t.first + place[r], panel * cols + column, o),
                [t.first + place[r], panel * cols + column],
            )
        )

    @inline
    def finish_one(row, column, panel, o, t):
        o.out[t.first + row, panel * cols + column] = finished(
            t.sums[t.slot, row, column], t.first + row, panel * cols + column, o
        )

    @inline
    def finish_rest(row, first, rest, panel, o, t):
        """The last columns, less than a vector: as one, or LLVM makes vectors of some rows and fuses other products in those"""
        last = T.alloc_buffer((lanes,), "float32")
        for lane in T.vectorized(lanes):
            last[lane] = T.float32(0)
        for c in T.unroll(rest):
            last[c] = combined(t.sums[t.slot, row, first + c], t.first + row, panel * cols + first + c, o)
        for lane in T.vectorized(lanes):
            last[lane] = act(last[lane])
        for c in T.unroll(rest):
            o.out[t.first + row, panel * cols + first + c] = T.Cast(out_dtype, last[c])

    @inline
    def finish_kept(rows, columns, panel, o, t):
        """The same from sums that were kept"""
        vectors, rest = T.meta_var((columns // lanes, columns % lanes))
        here: T.let = T.min(T.int64(rows), t.count - t.place)
        # one loop over all vectors of the tile: LLVM unrolls one over its few rows, which takes most of the time to compile
        if vectors > 0:
            for i in range(here * vectors):
                for lane in T.vectorized(lanes):
                    finish_one(t.place + i // vectors, i % vectors * lanes + lane, panel, o, t)
        if rest > 0:
            for i in range(here):
                finish_rest(t.place + i, vectors * lanes, rest, panel, o, t)

    @inline
    def multiply_tile(rows, columns, panel, step, steps, last, o, t):
        source = T.alloc_buffer((rows,), "int64")
        place = T.alloc_buffer((rows,), "int64")
        find_rows(rows, t, source, place)
        acc = micro.accumulators(rows, columns)
        start(acc, columns, panel, step, place, o, t)
        micro.multiply_sources(acc, t.a, source, o.weight, panel, step, steps, t.cin, fetch(o, t, steps))
        if written_out:
            if last:
                finish(acc, panel, place, o, t)
            else:
                keep(acc, place, t)
        else:
            keep(acc, place, t)
            if last:
                finish_kept(rows, columns, panel, o, t)

    @inline
    def multiply_panel(columns, panel, block, blocks, steps, first_panel, end_panel, o, t):
        step: T.let = block * block_steps
        here: T.let = T.min(T.int64(block_steps), steps - step)
        t.next[0] = panel + 1
        t.next[1] = step
        if panel + 1 == end_panel:
            if block < blocks - 1:
                t.next[0] = first_panel
                t.next[1] = step + here
            else:
                t.next[1] = T.int64(0)
        micro.over_tiles(
            t.count,
            lambda rows, place: multiply_tile(
                rows, columns, panel, step, here, block == blocks - 1, o, replace(t, place=place, slot=panel - first_panel)
            ),
        )

    @inline
    def multiply_block(o, t, panels, first_panel, end_panel):
        sums = T.alloc_buffer((group, most_rows, cols), "float32")
        following = T.alloc_buffer((2,), "int64")
        steps: T.let = (t.cin + 1) // 2 if micro.dot else t.cin
        blocks: T.let = T.max((steps + (block_steps - 1)) // block_steps, T.int64(1))  # the bias is due even without channels
        for g in range((end_panel - first_panel + (group - 1)) // group):
            first: T.let = first_panel + g * group
            end: T.let = T.min(first + group, end_panel)
            for block in range(blocks):
                micro.over_panels(
                    lambda columns, panel: multiply_panel(
                        columns, panel, block, blocks, steps, first, end, o, replace(t, sums=sums, next=following)
                    ),
                    panels,
                    first,
                    end,
                )

    @inline
    def widen(x, first, count, cin, wide):
        """wide[r, :] = float32(x[first + r, :])"""
        for r in range(count):
            for v in range(cin // lanes):
                for lane in T.vectorized(lanes):
                    wide[r, v * lanes + lane] = T.Cast("float32", x[first + r, v * lanes + lane])
            for c in range(cin % lanes):
                wide[r, cin // lanes * lanes + c] = T.Cast("float32", x[first + r, cin // lanes * lanes + c])

    @inline
    def multiply_widened(o, t, most, panels, first_panel, end_panel):
        wide = T.alloc_buffer((most, t.cin + 1), "float32")  # of an even width, rows share L1 places
        widen(o.x, t.first, t.count, t.cin, wide)
        multiply_block(o, replace(t, a=wide, base=T.int64(0)), panels, first_panel, end_panel)

    @script.prim_func(s_tir=True)
    def kernel(
        x_: T.handle,
        weight_: T.handle,
        bias_: T.handle,
        residual_: T.handle,
        gate_: T.handle,
        batch_index_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("linear", dtype, isa, micro.tile)})
        n, cin, cout, panels, steps, batch = T.int64(), T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        x = match_buffer(x_, (n, cin), dtype)
        weight = match_buffer(weight_, (1, panels, steps, cols), micro.weight_dtype)
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (n, cout), dtype)
        gate = match_buffer(gate_, (batch if has_index else 1, cout), "float32")
        batch_index = match_buffer(batch_index_, (n,), "int32")
        out = match_buffer(out_, (n, cout), out_dtype)
        if micro.llvm_ir is not None:
            T.attr(T.int32(0), "pragma_import_llvm", micro.llvm_ir)
        if has_index:
            check_batch_index(batch_index, n, batch)
        cut = T.alloc_buffer((4,), "int64")  # in memory, as TVM simplifies such quotients wherever they are used
        # Blocks of about one size, in whole register tiles: not more than `most_rows`.
        cut[0] = most_of(cin)
        cut[0] = (n + (cut[0] - 1)) // cut[0]
        cut[1] = tiles((n + (cut[0] - 1)) // T.max(cut[0], T.int64(1))) * tile_rows
        cut[2] = T.min(panels // ((TASKS + (cut[0] - 1)) // T.max(cut[0], T.int64(1))), T.int64(most_panels))
        cut[2] = T.max(cut[2], T.int64(least_panels))
        cut[3] = (panels + (cut[2] - 1)) // cut[2]
        row_blocks: T.let = cut[0]
        block_rows: T.let = cut[1]
        chunk: T.let = cut[2]
        chunks: T.let = cut[3]
        for task in T.parallel(row_blocks * chunks):
            part = T.alloc_buffer((5,), "int64")
            part[0] = task // chunks * block_rows
            part[1] = T.max(T.min(block_rows, n - part[0]), T.int64(0))
            part[2] = task % chunks * chunk
            part[3] = T.min(part[2] + chunk, panels)
            part[4] = (cols - 1) // T.max(tiles(part[1]), T.int64(1)) + 1
            first: T.let = part[0]
            count: T.let = part[1]
            first_panel: T.let = part[2]
            end_panel: T.let = part[3]
            share: T.let = part[4]
            o = T.meta_var(Operands(x, weight, bias, residual, gate, batch_index, out))
            t = T.meta_var(Block(first, count, cin, share, x, first))
            if micro.widens:
                multiply_widened(o, t, tiles(T.min(most_of(cin), n)) * tile_rows, panels, first_panel, end_panel)
            else:
                multiply_block(o, t, panels, first_panel, end_panel)

    given = {"residual": has_residual, "gate": has_gate, "batch_index": has_index}
    return drop_parameters(kernel, *(name for name, present in given.items() if not present))
