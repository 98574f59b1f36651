"""Between sparse rows and a dense grid, `R.sparse_ops.to_dense` and `R.sparse_ops.from_dense`."""

from tvm import relax

from tir_kernels.spec.dense import FromDense, ToDense, grid_shape

from .index import dimensions
from .memory import call_granted, emit_grant
from .register import call_spec, register_op
from .signature import Bound, Signature, coordinates, extents, features

EXTENTS = ("size_x", "size_y", "size_z")
TO_DENSE = Signature(
    "to_dense",
    (features("x", "n", "channels"), coordinates(), extents("batch", "batch"), extents("shape", *EXTENTS)),
    options=("channels_last",),
    known=("channels",),
)
GRID = ("batch", "axis1", "axis2", "axis3", "axis4")
FROM_DENSE = Signature("from_dense", (features("dense", *GRID), coordinates()), options=("channels_last",))


def to_dense(x: relax.Expr, coords: relax.Expr, batch, shape, channels_last: bool = False) -> relax.Call:
    """Rows at their places in a dense grid, zeros elsewhere: the layout of spconv's `.dense()`.

    x float32, bfloat16 or float16 [N, C]; coords int32 [N, 4] as (batch, x, y, z), no row twice, in 0 to batch - 1 and within
    shape (X, Y, Z). `batch` and the extents are ints of at least 1 or symbolic dimensions. Returns dtype of x,
    [batch, C, X, Y, Z], or with `channels_last` [batch, X, Y, Z, C].

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row of coords
    that lies outside of the grid or repeats another, and for a grid that does not fit into memory, before it is allocated.
    """
    return _to(
        x=x,
        coords=coords,
        batch=dimensions("to_dense", "batch", batch, 1, count=1),
        shape=dimensions("to_dense", "shape", shape, 1),
        channels_last=bool(channels_last),
    )


def _infer_to(bound: Bound) -> relax.TensorType:
    dims = bound.dims
    shape = grid_shape(dims["batch"], dims["channels"], bound.shape(EXTENTS), bound.options["channels_last"])
    return relax.TensorType(shape, bound.dtype)


def _legalize_to(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    slabs = ("int32", [bound.dims["batch"], bound.dims["size_x"], 2])  # what the kernel counts for each (b, x)
    granted = emit_grant(bb, "to_dense", (bound.dtype, bound.type.shape.values), slabs)
    spec = ToDense(bound.dims["channels"], bound.dtype, bound.options["channels_last"])
    return call_granted(bb, spec, [bound["x"], bound["coords"]], granted, bound.type)


_to = register_op(TO_DENSE, _legalize_to, _infer_to)


def from_dense(dense: relax.Expr, coords: relax.Expr, channels_last: bool = False) -> relax.Call:
    """The rows of a dense grid at given coordinates.

    dense float32, bfloat16 or float16 [B, C, X, Y, Z], or with `channels_last` [B, X, Y, Z, C]; coords
    int32 [N, 4] as (batch, x, y, z), within the grid. Returns dtype of dense, [N, C].

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row of coords
    outside of the grid.
    """
    return _from(dense=dense, coords=coords, channels_last=bool(channels_last))


def _infer_from(bound: Bound) -> relax.TensorType:
    channels = bound.dims["axis4" if bound.options["channels_last"] else "axis1"]
    return relax.TensorType([bound.dims["n"], channels], bound.dtype)


def _legalize_from(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = FromDense(bound.dtype, bound.options["channels_last"])
    return call_spec(bb, spec, bound.call.args, bound.type)


_from = register_op(FROM_DENSE, _legalize_from, _infer_from)
