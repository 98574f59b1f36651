"""Dense transposed convolution as implicit matrix products, one for each group of phases (`spec.conv_transpose3d`).

As in `conv.conv3d` vector lanes are voxels: here the places m, which every phase has one output of. The rows of a group's
product are its phases, and of each all output channels; so a kernel as large as its stride is one product of a single tap,
and what is left is to set its rows apart in memory. A task is a block of places and a range of rows of one group.

Blocks do not depend on threads, so the bits do not either.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..layout import WeightLayout
from ..script import drop_parameters, inline
from ..spec.conv_transpose3d import ConvTranspose3d, Group, axes_of, groups_of
from ..vector_math import EMIT
from .guards import check_outputs
from .isa import Isa, kernel_name
from .panels import CHANNELS, SLICE, VOXELS, ChannelTiles, adding, blocking, filling, packing, placing
from .register_tile import RegisterTile

FIRST_TASK, FIRST_PHASE, TILES, TASK_TILES, FIRST_TERM, TERMS, FIRST_ROW, ROWS = range(8)  # the columns of `Plan.table`

# The numbers of a running task: what it computes, ...
PART, BATCH, GROUP, PHASE, FIRST, COUNT, BASE = range(
    7
)  # of places: the first one, how many; where their batch element is in x
FIRST_TILE, TILE_COUNT, FIRST_ROW_OF_TASK, ROW_COUNT, FIRST_TERM_OF_TASK, TERM_COUNT, WEIGHT_ROW, GROUP_ROWS = range(7, 15)
# ... and where it is: the row of a tile, a line of places, and outputs, see `find_outputs`.
ROW, LINE, LINE_COUNT, D, H, W, LOW, HIGH, OUT = range(15, 24)
NUMBERS = 24


@dataclass(frozen=True)
class Plan:
    """How the products of all groups are cut: what a running task looks up."""

    micro: RegisterTile
    tiles: ChannelTiles  # of one phase
    table: tuple[tuple[int, ...], ...]  # a row for each group
    tasks: int  # of a block of places
    task_rows: int  # of a task, at most

    @classmethod
    def of(cls, spec: ConvTranspose3d, isa: Isa) -> "Plan":
        groups = groups_of(spec.geometry)
        micro, _ = blocking(spec.cin * max(len(group.steps) for group in groups), isa, spec.dtype)
        tiles = ChannelTiles(spec.cout, micro.tile.rows)
        table, tasks, phases, all_terms, rows, most = [], 0, 0, 0, 0, 0
        for group in groups:
            terms, own = spec.cin * len(group.steps), len(group.phases) * tiles.count
            parts = -(-len(group.phases) * spec.cout // CHANNELS)
            task_tiles = -(-own // parts)
            of_group = len(group.phases) * spec.cout
            table.append((tasks, phases, own, task_tiles, all_terms, terms, rows, of_group))
            tasks, phases, all_terms = tasks + -(-own // task_tiles), phases + len(group.phases), all_terms + terms
            rows, most = rows + -(-terms // micro.depth) * of_group, max(most, task_tiles)
        return cls(micro, tiles, tuple(table), tasks, most * tiles.highest)

    @property
    def terms(self) -> int:
        """Of all groups."""
        return sum(row[TERMS] for row in self.table)

    @property
    def rows(self) -> int:
        """Of the packed weight."""
        return self.table[-1][FIRST_ROW] + -(-self.table[-1][TERMS] // self.micro.depth) * self.table[-1][ROWS]


def weight_layout(spec: ConvTranspose3d, isa: Isa) -> WeightLayout:
    """[rows, depth]: group by group, one block of all its sums after another; a row is a phase and an output channel, a term an
    input channel and a step. Zero past the last term.

    bfloat16 where activations are and the CPU has the dot instruction, else float32.
    """
    plan = Plan.of(spec, isa)
    depth, dtype = plan.micro.depth, "bfloat16" if plan.micro.dot else "float32"
    shape = (max(plan.rows, 1), depth)

    def unpack(packed):
        weight = np.zeros((spec.cin, spec.cout, spec.geometry.taps), "float32")
        for group, of_group in zip(groups_of(spec.geometry), plan.table, strict=True):
            blocks = -(-of_group[TERMS] // depth)
            rows = packed[of_group[FIRST_ROW] :][: blocks * of_group[ROWS]].astype("float32")
            rows = rows.reshape(blocks, of_group[ROWS], depth).transpose(1, 0, 2).reshape(of_group[ROWS], blocks * depth)
            terms = rows[:, : of_group[TERMS]].reshape(len(group.phases), spec.cout, spec.cin, len(group.steps))
            for phase, taps in enumerate(group.taps):
                weight[:, :, list(taps)] = terms[phase].transpose(1, 0, 2)
        return weight.reshape(spec.weight_shape)

    return WeightLayout(shape, dtype, pack_filters(spec, isa, dtype), unpack)


@cache
def pack_filters(spec: ConvTranspose3d, isa: Isa, packed_dtype: str) -> tvm.tirx.PrimFunc:
    """PrimFunc (weight [Cin, Cout, kd, kh, kw], packed `packed_dtype` [rows, depth]), see `weight_layout`."""
    cin, cout, all_taps = spec.cin, spec.cout, spec.geometry.taps
    plan = Plan.of(spec, isa)
    depth, shape = plan.micro.depth, (max(plan.rows, 1), plan.micro.depth)

    @inline
    def pack_group(group, of_group, weight, packed):
        taps = T.alloc_buffer((len(group.phases) * len(group.steps),), "int64")
        store_numbers(taps, [tap for of_phase in group.taps for tap in of_phase])
        for row in T.parallel(-(-of_group[TERMS] // depth) * of_group[ROWS]):
            for i in range(depth):
                term: T.let = row // of_group[ROWS] * depth + i
                if term < of_group[TERMS]:
                    tap: T.let = taps[row % of_group[ROWS] // cout * len(group.steps) + term % len(group.steps)]
                    packed[of_group[FIRST_ROW] + row, i] = T.Cast(
                        packed_dtype, weight[term // len(group.steps), row % cout, tap]
                    )
                else:
                    packed[of_group[FIRST_ROW] + row, i] = T.Cast(packed_dtype, T.float32(0))

    def pack_groups(weight, packed):
        for group, of_group in zip(groups_of(spec.geometry), plan.table, strict=True):
            if of_group[TERMS]:
                pack_group(group, of_group, weight, packed)

    @script.prim_func(s_tir=True)
    def kernel(weight_: T.handle, packed: T.Buffer(shape, packed_dtype)):
        T.func_attr({"tirx.noalias": True, "global_symbol": "pack_transposed_filters"})
        weight = match_buffer(weight_, spec.weight_shape, spec.dtype)
        flat = T.decl_buffer((cin, cout, all_taps), spec.dtype, data=weight.data)
        pack_groups(flat, packed)

    return kernel


def store_numbers(buffer, numbers) -> None:
    """Emit: the buffer's elements, in row-major order."""
    width = int(buffer.shape[-1])
    for i, number in enumerate(numbers):
        T.buffer_store(buffer, T.int64(number), [i] if len(buffer.shape) == 1 else [i // width, i % width])


@dataclass(frozen=True)
class Operands:
    """The buffers of a convolution; a residual that it lacks is never read."""

    x: tvm.tirx.Buffer  # [elements], padded
    where: tvm.tirx.Buffer  # [terms of all groups]: the distance of a term from the place
    place: tvm.tirx.Buffer  # [places]: where they lie
    phases: tvm.tirx.Buffer  # [phases, 3]
    weight: tvm.tirx.Buffer  # [rows, depth]
    bias: tvm.tirx.Buffer  # [Cout]
    residual: tvm.tirx.Buffer  # [B * Cout * outputs]
    out: tvm.tirx.Buffer  # [B * Cout * outputs]


@dataclass(frozen=True)
class Sizes:
    """int64 expressions, three each."""

    x: tuple  # padded
    places: tuple
    out: tuple


@cache
def conv_transpose3d(spec: ConvTranspose3d, isa: Isa) -> tvm.tirx.PrimFunc:
    """See `ConvTranspose3d`."""
    cin, cout, geometry, dtype, has_residual = spec.cin, spec.cout, spec.geometry, spec.dtype, spec.has_residual
    groups, axes, plan = groups_of(geometry), axes_of(geometry), Plan.of(spec, isa)
    micro, tiles = plan.micro, plan.tiles
    depth, cols = micro.depth, micro.tile.cols
    slice_tiles = max(1, SLICE // micro.tile.rows)
    before, after = (tuple(getattr(axis, name) for axis in axes) for name in ("before", "after"))
    # where the first output of phase 0 is
    first_d, first_h, first_w = (
        s * axis.first - pad for s, axis, pad in zip(geometry.stride, axes, geometry.padding, strict=True)
    )
    stride_d, stride_h, stride_w = geometry.stride
    stored = "uint16" if micro.dot else dtype  # how x is read: TVM does not vectorize what makes integers of bfloat16
    act, has_act = EMIT[spec.activation], spec.activation != "none"
    odd = any(of_group[TERMS] % 2 for of_group in plan.table)
    pad, find_voxels = filling(before, after, stored), placing((1, 1, 1))
    pack, add_product = packing(micro, odd), adding(micro)

    def store_distances(group: Group, first, c, where, size):
        for i, (d, h, w) in enumerate(group.steps):
            at = ((c * size[0] + axes[0].shift - d) * size[1] + axes[1].shift - h) * size[2] + axes[2].shift - w
            T.buffer_store(where, at, [first + c * len(group.steps) + i])

    @inline
    def find_terms_of_group(group, first, where, size):
        for c in range(cin):
            store_distances(group, first, T.Cast("int64", c), where, size)

    def find_terms(where, size):
        """where[i] = the distance of term i = (channel, step) of a sum from the place, group by group"""
        for group, of_group in zip(groups, plan.table, strict=True):
            if of_group[TERMS]:
                find_terms_of_group(group, T.int64(of_group[FIRST_TERM]), where, size)

    def first_row(tile):
        """The row of a group's product at which a tile begins."""
        return tile // tiles.count * cout + tiles.first(tile % tiles.count)

    @inline
    def find_outputs(o, sizes, at, row, line, begin, end):
        """Which outputs of a row, a phase of an output channel, are at the places from `begin` to `end` of a line: none, or
        from at[LOW] to at[HIGH], of which the first one lies at at[OUT]"""
        at[D] = line // sizes.places[1]
        at[H] = (line - at[D] * sizes.places[1]) * stride_h + first_h + o.phases[at[PHASE] + row // cout, 1]
        at[D] = at[D] * stride_d + first_d + o.phases[at[PHASE] + row // cout, 0]
        at[W] = first_w + o.phases[at[PHASE] + row // cout, 2]  # of the first place of the line; above -stride
        at[LOW] = T.max(begin, line * sizes.places[2] + T.if_then_else(at[W] < 0, T.int64(1), T.int64(0)))
        at[HIGH] = T.min(end, line * sizes.places[2] + (sizes.out[2] - 1 - at[W]) // stride_w + 1)
        if T.Or(T.Or(at[D] < 0, at[D] >= sizes.out[0]), T.Or(at[H] < 0, at[H] >= sizes.out[1])):
            at[HIGH] = at[LOW]
        at[OUT] = ((at[BATCH] * cout + row % cout) * sizes.out[0] + at[D]) * sizes.out[1] + at[H]
        at[OUT] = at[OUT] * sizes.out[2] + at[W] + (at[LOW] - line * sizes.places[2]) * stride_w

    @inline
    def finish_row(o, at, r, sums):
        """out = act(sums + residual) for the outputs of a row that were found"""
        low: T.let = at[LOW] - at[FIRST]
        if has_residual:
            for i in range(at[HIGH] - at[LOW]):
                sums[r, low + i] = sums[r, low + i] + T.Cast("float32", o.residual[at[OUT] + i * stride_w])
        if has_act:
            for i in range(at[HIGH] - at[LOW]):
                sums[r, low + i] = act(sums[r, low + i])
        for i in range(at[HIGH] - at[LOW]):
            o.out[at[OUT] + i * stride_w] = T.Cast(dtype, sums[r, low + i])

    @inline
    def convolve_block(o, sizes, at):
        sums = T.alloc_buffer((plan.task_rows, VOXELS), "float32")  # [rows, places] of the task
        packed = T.alloc_buffer((1, VOXELS // cols, micro.steps, cols), micro.weight_dtype)
        for r in range(at[ROW_COUNT]):
            for i in range(at[COUNT]):
                sums[r, i] = o.bias[(at[FIRST_ROW_OF_TASK] + r) % cout]
        for block in range((at[TERM_COUNT] + depth - 1) // depth):
            for panel in range((at[COUNT] + cols - 1) // cols):
                pack(
                    *(o.x, at[BASE], o.where, at[FIRST_TERM_OF_TASK] + block * depth, at[TERM_COUNT] - block * depth),
                    *(o.place, at[FIRST], panel, at[COUNT], packed),
                )
            for part in range((at[TILE_COUNT] + slice_tiles - 1) // slice_tiles):
                for panel in range((at[COUNT] + cols - 1) // cols):
                    for t in range(T.min(T.int64(slice_tiles), at[TILE_COUNT] - part * slice_tiles)):
                        tile: T.let = at[FIRST_TILE] + part * slice_tiles + t
                        at[ROW] = first_row(tile)
                        tiles.with_height(
                            tile % tiles.count,
                            lambda rows: add_product(
                                *(rows, at[ROW] - at[FIRST_ROW_OF_TASK], at[WEIGHT_ROW] + block * at[GROUP_ROWS] + at[ROW]),
                                *(panel, o.weight, packed, sums),
                            ),
                        )
        at[LINE] = at[FIRST] // sizes.places[2]
        at[LINE_COUNT] = (at[FIRST] + at[COUNT] - 1) // sizes.places[2] - at[LINE] + 1
        for r in range(at[ROW_COUNT]):
            for i in range(at[LINE_COUNT]):
                line: T.let = at[LINE] + i
                begin: T.let = T.max(at[FIRST], line * sizes.places[2])
                end: T.let = T.min(at[FIRST] + at[COUNT], (line + 1) * sizes.places[2])
                find_outputs(o, sizes, at, at[FIRST_ROW_OF_TASK] + r, line, begin, end)
                finish_row(o, at, r, sums)

    @inline
    def convolve(x, weight, bias, residual, out, batch, sizes):
        if micro.llvm_ir is not None:
            T.attr(T.int32(0), "pragma_import_llvm", micro.llvm_ir)
        places: T.let = sizes.places[0] * sizes.places[1] * sizes.places[2]
        blocks: T.let = (places + VOXELS - 1) // VOXELS
        where = T.alloc_buffer((T.int64(max(plan.terms, 1)),), "int64")
        # one for all tasks, as TVM would let the register tile share the memory of one that ends early
        place = T.alloc_buffer((blocks * VOXELS,), "int64")
        table = T.alloc_buffer((len(groups), len(plan.table[0])), "int64")
        phases = T.alloc_buffer((spec.phases, 3), "int64")
        store_numbers(table, [number for of_group in plan.table for number in of_group])
        store_numbers(phases, [number for group in groups for phase in group.phases for number in phase])
        find_terms(where, sizes.x)
        for block in T.parallel(blocks):
            find_voxels(place, block, places, sizes.x, sizes.places)
        for task in T.parallel(plan.tasks * batch * blocks):
            # in memory, or TVM simplifies these quotients wherever they stand
            at = T.alloc_buffer((NUMBERS,), "int64")
            at[PART] = task // (batch * blocks)
            at[BATCH] = task // blocks % batch
            at[FIRST] = task % blocks * VOXELS
            at[COUNT] = T.min(T.int64(VOXELS), places - at[FIRST])
            at[BASE] = at[BATCH] * cin * sizes.x[0] * sizes.x[1] * sizes.x[2]
            at[GROUP] = T.int64(0)
            for g in range(1, len(groups)):
                if table[g, FIRST_TASK] <= at[PART]:
                    at[GROUP] = T.Cast("int64", g)
            at[FIRST_TILE] = (at[PART] - table[at[GROUP], FIRST_TASK]) * table[at[GROUP], TASK_TILES]
            at[TILE_COUNT] = T.min(table[at[GROUP], TASK_TILES], table[at[GROUP], TILES] - at[FIRST_TILE])
            at[FIRST_ROW_OF_TASK] = first_row(at[FIRST_TILE])
            at[ROW_COUNT] = first_row(at[FIRST_TILE] + at[TILE_COUNT]) - at[FIRST_ROW_OF_TASK]
            at[FIRST_TERM_OF_TASK] = table[at[GROUP], FIRST_TERM]
            at[TERM_COUNT] = table[at[GROUP], TERMS]
            at[WEIGHT_ROW] = table[at[GROUP], FIRST_ROW]
            at[GROUP_ROWS] = table[at[GROUP], ROWS]
            at[PHASE] = table[at[GROUP], FIRST_PHASE]
            convolve_block(Operands(x, where, place, phases, weight, bias, residual, out), sizes, at)

    batch = tvm.tirx.Var("batch", "int64")
    size, size_out = ([tvm.tirx.Var(f"{name}{axis}", "int64") for axis in "dhw"] for name in ("", "out_"))
    size_padded = tuple(n + axis.before + axis.after for n, axis in zip(size, axes, strict=True))
    places = tuple(n + axis.more for n, axis in zip(size, axes, strict=True))
    sizes = Sizes(size_padded, places, tuple(size_out))
    elements, elements_padded, elements_out = (
        batch * channels * d * h * w for channels, (d, h, w) in ((cin, size), (cin, size_padded), (cout, size_out))
    )

    @script.prim_func(s_tir=True)
    def kernel(x_: T.handle, weight_: T.handle, bias_: T.handle, residual_: T.handle, out_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("conv_transpose3d", dtype, isa, micro.tile)})
        x = match_buffer(x_, (batch, cin, *size), dtype)
        weight = match_buffer(weight_, (max(plan.rows, 1), depth), "bfloat16" if micro.dot else "float32")
        bias = match_buffer(bias_, (cout,), "float32")
        out = match_buffer(out_, (batch, cout, *size_out), dtype)
        residual = match_buffer(residual_, (batch, cout, *size_out), dtype)
        check_outputs(size, geometry)
        flat = T.decl_buffer((elements,), stored, data=x.data)
        flat_residual = T.decl_buffer((elements_out,), dtype, data=(residual if has_residual else out).data)
        flat_out = T.decl_buffer((elements_out,), dtype, data=out.data)
        if any(before + after):
            padded = T.alloc_buffer((elements_padded,), stored)
            pad(flat, padded, batch * cin, size, size_padded)
            convolve(padded, weight, bias, flat_residual, flat_out, batch, sizes)
        else:
            convolve(flat, weight, bias, flat_residual, flat_out, batch, sizes)

    return kernel if has_residual else drop_parameters(kernel, "residual")
