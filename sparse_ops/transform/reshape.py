"""Reshapes as kernels that TVM sees through at any sizes."""

from collections.abc import Sequence
from functools import reduce
from operator import mul

import tvm
from tvm import relax, te

from .layout import groups
from .rewrite import shape_of, static


def legalize_reshape(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    """A kernel that takes axes apart and together only where they are, for `LegalizeOps`.

    TVM's own numbers all elements along one axis. With sizes that only the running module knows it does not see then that
    nothing moves, so that it copies, and simplifies for half a minute what it finds of quotients.
    """
    x, shape = call.args[0], shape_of(call)
    if shape is None or shape_of(x) is None or not shape or not shape_of(x):
        return bb.call_te(tvm.topi.reshape, x, call.args[1])
    parts = groups(shape_of(x), shape)

    def reshape(source: te.Tensor, *sizes) -> te.Tensor:
        def element(*places):
            found = [tvm.tirx.const(0, "int64")] * len(source.shape)
            for before, after in parts:
                wide = [axis for axis in after if static(shape[axis]) != 1]
                flat = _flat([places[axis] for axis in wide], [sizes[axis] for axis in wide])
                for axis, place in _apart(flat, [axis for axis in before if static(source.shape[axis]) != 1], source.shape):
                    found[axis] = place
            return source(*found)

        return te.compute(list(sizes), element, "reshape")

    return bb.call_te(reshape, x, *shape, primfunc_name_hint="reshape")


def _flat(places: Sequence, sizes: Sequence):
    """The number of an element, last axis first to change."""
    return reduce(lambda number, part: number * part[1] + part[0], zip(places, sizes, strict=True), tvm.tirx.const(0, "int64"))


def _apart(flat, axes: Sequence[int], shape: Sequence):
    """Pairs of an axis and the place along it of the element of a number."""
    for k, axis in enumerate(axes):
        behind = reduce(mul, (shape[other] for other in axes[k + 1 :]), tvm.tirx.const(1, "int64"))
        place = tvm.tirx.floordiv(flat, behind)
        yield axis, place if k == 0 else tvm.tirx.floormod(place, shape[axis])
