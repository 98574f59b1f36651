"""Step 1, matrix products: register tiles over a packed right matrix."""

from tvm import s_tir, tirx

from tir_kernels.cpu.isa import Isa, Tile

from .block import Axis, Block
from .constants import FEW, FUSE, SERIAL, VECTOR
from .nodes import is_number


def find_product(block: Block) -> tuple[Axis, Axis] | None:
    """The (row, column) of a matrix product out[.., row, .., column] += left[.., row, .., k] * right[.., k, .., column].

    The axes may stand in any order, except that the column is the innermost one of the result. None for anything else, and
    for what is too small for a register tile.
    """
    factors = [load for load in block.loads if not load.source.same_as(block.stores[0].buffer)]
    column = next((axis for axis in block.results if is_number(block.stride(block.written[0], axis), 1)), None)
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


def tile_product(sch: s_tir.Schedule, block: Block, row: Axis, column: Axis) -> set[str]:
    """A matrix product by register tiles, whose rows and columns are padded, the right matrix packed in panels of columns.

    Returns the names of the blocks that are now scheduled.
    """
    tile = Tile.of(Isa.of(), column.size or FEW).in_one_buffer()
    padding = {row: tile.rows, column: tile.cols}
    sch.pad_einsum(block.rv, [padding.get(axis, 1) for axis in block.axes])
    padded = Block(sch, block.rv)
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
    while len(users := sch.get_consumers(last)) == 1 and not Block(sch, users[0]).reduced:
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
