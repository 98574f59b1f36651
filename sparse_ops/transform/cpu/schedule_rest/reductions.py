"""Step 1, large reductions to few results: parts of fixed size, for the same bits with any number of threads."""

import itertools

from tvm import s_tir

from .block import Block, fuse, known_steps
from .constants import COLUMNS, FEW, PART, PARTIAL, SERIAL, TASKS, VECTOR


def cut(sch: s_tir.Schedule, block: Block) -> set[str]:
    """Cut a large reduction to few results into parts of fixed size, which are reduced in parallel, then together.

    Returns the names of the blocks that are now scheduled, which are none if the reduction stays whole.
    """
    few, inner = known_steps(block.results), block.innermost()
    if few is None or few > FEW or inner is None or (block.steps or SERIAL * TASKS) < SERIAL * 8:
        return set()
    if (few if inner.reduce else few // COLUMNS) >= TASKS:
        return set()
    outer, reduced, merged = block.order(block.axes)
    sch.reorder(*(axis.loop for axis in (*outer, *reduced, *merged)))
    last = fuse(sch, [axis.loop for axis in merged])
    whole = all(block.merges(*pair) for pair in itertools.pairwise(reduced))
    sums = reduced if whole else reduced[:1]
    loop = fuse(sch, [axis.loop for axis in sums]) if sums else last
    step = known_steps([axis for axis in block.axes if axis not in (sums or merged)])
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
