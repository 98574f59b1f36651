"""The gradient of a sparse convolution's weight: for every tap, the product of two matrices whose rows the map pairs.

The slots of a tap's group are cut into parts, by their number alone. Of each part a block of threads sums one tap and a panel
of output and input channels, in the order of the slots: `PAIRS` slots at a time, whose rows lie in shared memory meanwhile; a
slot without a neighbour has rows of zeros there. A second launch adds the parts in order.

Where groups of channels are narrow there is no panel: a thread has one element, and reads both rows itself.
"""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..spec.weight_gradient import SparseConvWeightGradient
from .gpu import Gpu, kernel_name
from .guards import match_status, reporting
from .launch import THREADS, for_each
from .map_sums import Fit
from .neighbour_table import TILE_ROWS, Table, match_table
from .partial_sums import add_in_order

PAIRS = 32  # slots whose rows are in shared memory at a time
PANEL = 64  # output channels, and input channels, of a panel
OWN = 4  # of each that a thread has: 16 x 16 threads
WIDE = 16  # channels of a group from which on panels serve better
PART_TILES = 16  # of a part, at least
MOST_PARTS = 32
BLOCKS = 1024  # as many as are wanted: more parts would only take more memory, a whole gradient each


def parts_for(tiles, blocks):
    """Into how many parts the slots of a group are cut, each for so many blocks: an int64 expression."""
    wanted = T.min(tiles // PART_TILES, BLOCKS // T.max(blocks, T.int64(1)))
    return T.max(T.min(wanted, T.int64(MOST_PARTS)), T.int64(1))


@cache
def weight_gradient(spec: SparseConvWeightGradient, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `SparseConvWeightGradient`."""
    cin, cout, groups, dtype = spec.cin, spec.cout, spec.groups, spec.dtype
    depth, width = spec.group_cin, spec.group_cout
    in_panels = groups == 1 or min(depth, width) >= WIDE
    across, down = -(-depth // PANEL), -(-width // PANEL)  # panels of a group

    def pair(table: Table, tap, slot, fits):
        """(input row, output row) of a slot at a tap, int64; -1 where there is none."""
        group = T.Cast("int32", tap * table.groups // table.taps)
        source = T.if_then_else(fits, table.neighbours[tap, slot], -1)
        return T.Cast("int64", source), T.Cast("int64", table.order[group, slot])

    def sum_panel(x, gradient, table, sums, tap, part, first, end, fits, panel, thread):
        """Emit: the sums of a block's panel over the slots from `first` to `end`, both whole tiles."""
        group = T.bind(panel // (across * down))
        first_out, first_in = T.bind(panel // across % down * PANEL), T.bind(panel % across * PANEL)
        rows_out = T.alloc_buffer((PAIRS, PANEL), "float32", scope="shared")
        rows_in = T.alloc_buffer((PAIRS, PANEL), "float32", scope="shared")
        own = T.alloc_buffer((OWN, OWN), "float32", scope="local")
        out, into = T.bind(thread // (PANEL // OWN) * OWN), T.bind(thread % (PANEL // OWN) * OWN)
        for i in range(OWN):
            for j in range(OWN):
                T.buffer_store(own, T.float32(0), [i, j])
        with T.serial(0, (end - first) // PAIRS) as step:
            for i in range(PAIRS * PANEL // THREADS):
                place = T.bind(i * THREADS + thread)
                of_pair, channel = T.bind(place // PANEL), T.bind(place % PANEL)
                source, target = pair(table, tap, first + step * PAIRS + of_pair, fits)
                source = T.bind(source)
                out_there, in_there = first_out + channel < width, first_in + channel < depth
                value = T.Cast("float32", gradient[target, group * width + first_out + channel])
                value = T.if_then_else(T.And(source >= 0, out_there), value, T.float32(0))
                T.buffer_store(rows_out, value, [of_pair, channel])
                value = T.Cast("float32", x[source, group * depth + first_in + channel])
                value = T.if_then_else(T.And(source >= 0, in_there), value, T.float32(0))
                T.buffer_store(rows_in, value, [of_pair, channel])
            with T.serial(0, PAIRS) as of_pair:
                for i in range(OWN):
                    for j in range(OWN):
                        product = rows_out[of_pair, out + i] * rows_in[of_pair, into + j]
                        T.buffer_store(own, own[i, j] + product, [i, j])
        for i in range(OWN):
            for j in range(OWN):
                co, ci = first_out + out + i, first_in + into + j
                with T.If(T.And(co < width, ci < depth)), T.Then():
                    T.buffer_store(sums, own[i, j], [part, group * width + co, tap, ci])

    def sum_element(x, gradient, table, sums, tap, part, first, end, fits, panel, thread):
        """Emit: the sum of a thread's element over these slots."""
        place = T.bind(panel * THREADS + thread)
        value = T.alloc_buffer((1,), "float32", scope="local")
        with T.If(place < cout * depth), T.Then():
            ci, co = T.bind(place // cout), T.bind(place % cout)
            T.buffer_store(value, T.float32(0), [0])
            with T.serial(0, end - first) as i:
                source, target = pair(table, tap, first + i, fits)
                source = T.bind(source)
                with T.If(source >= 0), T.Then():
                    factors = gradient[target, co], x[source, co // width * depth + ci]
                    product = T.Cast("float32", factors[0]) * T.Cast("float32", factors[1])
                    T.buffer_store(value, value[0] + product, [0])
            T.buffer_store(sums, value[0], [part, co, tap, ci])

    panels = groups * across * down if in_panels else -(-cout * depth // THREADS)

    def sum_all(x, gradient, table: Table, fit: Fit, status, out):
        """Emit the launches."""
        parts = T.bind(parts_for(table.tiles_of_group, fit.taps * panels))
        sums = T.alloc_buffer((parts, cout, fit.taps, depth), "float32")
        with (
            T.launch_thread("blockIdx.x", fit.taps * panels) as block,
            T.launch_thread("blockIdx.y", parts) as part,
            T.launch_thread("threadIdx.x", THREADS) as thread,
        ):
            fits = T.bind(fit.holds(table))
            fit.check(status, table, T.And(T.And(block == 0, part == 0), thread == 0))
            tap, panel = T.bind(T.Cast("int32", block // panels)), T.bind(T.Cast("int32", block % panels))
            first, end = (T.bind(T.Cast("int32", table.tiles_of_group * (part + i) // parts) * TILE_ROWS) for i in range(2))
            end = T.bind(T.if_then_else(fits, end, first))
            (sum_panel if in_panels else sum_element)(x, gradient, table, sums, tap, part, first, end, fits, panel, thread)

        def add(place):
            at = [place // (fit.taps * depth), place // depth % fit.taps, place % depth]
            T.buffer_store(out, add_in_order(sums, parts, at)[0], at)

        for_each(cout * fit.taps * depth, add)

    @script.prim_func(s_tir=True)
    def kernel(
        x_: T.handle,
        gradient_: T.handle,
        neighbours_: T.handle,
        order_: T.handle,
        tiles_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        status_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("weight_gradient", dtype)})
        n, m, kx, ky, kz = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        x = match_buffer(x_, (n, cin), dtype)
        gradient = match_buffer(gradient_, (m, cout), dtype)
        table = T.meta_var(match_table(neighbours_, order_, tiles_))
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (cout, kx, ky, kz, depth), "float32")
        by_tap = T.decl_buffer((cout, kx * ky * kz, depth), "float32", data=out.data)
        fit = T.meta_var(Fit(map_rows, n, m, kx * ky * kz))
        sum_all(x, gradient, table, fit, status, by_tap)

    return reporting(kernel)
