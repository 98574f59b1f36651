"""Windows of voxels, `R.sparse_ops.window_partition`."""

import tvm
from tvm import relax

from tir_kernels.spec.coordinate_index import COORDINATE_LIMIT
from tir_kernels.spec.windows import GroupRows, WindowCoords

from .index import dimensions, emit_shape, emit_tuple, int32, int32_of_rank, triple
from .numbers import MOST_SIZE
from .register import call_spec, register_op
from .signature import Bound, Signature, coordinates, extents
from .unique import unique

SHIFT = ("shift_x", "shift_y", "shift_z")
SIGNATURE = Signature("window_partition", (coordinates(), extents("shift", *SHIFT, optional=True)), options=("window",))


LEAST_SHIFT = -COORDINATE_LIMIT


def window_partition(coords: relax.Expr, window, shift=0) -> relax.Call:
    """The rows of coords int32 [N, 4] by window (batch, (x + sx) // wx, (y + sy) // wy, (z + sz) // wz), ascending.

    window: voxels along x, y, z, an int or three of at least 1; shift: likewise, at least -32768, or symbolic dimensions;
    divisions round down. Returns
    (order int32 [N], offsets int32 [W + 1]): window i holds the rows order[offsets[i] : offsets[i + 1]], ascending. W
    counts the windows that are not empty and is known only at run time: `match_cast` the offsets to name it. Attention
    within windows is `attention(q, k, v, offsets, offsets, q_order=order, k_order=order)`.

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row out of range
    (batch 0 to 4095, x, y, z -32768 to 32767).
    """
    window = triple("window_partition", "window", window, 1)
    return _make(coords=coords, window=window, shift=dimensions("window_partition", "shift", shift, LEAST_SHIFT))


def numbers(bound: Bound, argument: str) -> list:
    """What was given for an argument that is a shape; zeros where nothing was."""
    dims = bound.signature.by_name[argument].shape
    return bound.shape(dims) if bound.has(argument) else [tvm.tirx.IntImm("int64", 0)] * len(dims)


def window_axes(op: str, window, shift) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Window and shift along x, y, z. A shift by a whole window changes nothing and is taken off."""
    window, shift = triple(op, "window", window, 1), triple(op, "shift", shift, LEAST_SHIFT, MOST_SIZE)
    return window, tuple(s % w for s, w in zip(shift, window, strict=True))


def emit_groups(bb: relax.BlockBuilder, keys: relax.Expr) -> list[relax.Expr]:
    """Rows of keys int32 [N, 4] by key, ascending, those of one key ascending: (order [N], offsets [G + 1])."""
    distinct, group = emit_tuple(bb, unique(keys), 2)
    groups, _ = emit_shape(bb, distinct)
    return emit_tuple(bb, call_spec(bb, GroupRows(), [group], [group.ty, int32(groups + 1)]), 2)


def _infer(bound: Bound) -> relax.TupleType:
    return relax.TupleType([int32(bound.dims["n"]), int32_of_rank(1)])


def _legalize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    coords, spec = bound["coords"], WindowCoords(bound.options["window"])
    windows = call_spec(bb, spec, [coords, *numbers(bound, "shift")], coords.ty)
    return relax.Tuple(emit_groups(bb, bb.emit(windows)))


_make = register_op(SIGNATURE, _legalize, _infer)
