"""Between sparse rows and a dense grid, `R.sparse_ops.to_dense` and `R.sparse_ops.from_dense`."""

from tvm import relax

from tir_kernels.spec.dense import FromDense, ToDense, grid_shape

from .index import triple
from .numbers import check_int
from .register import call_spec, register_op
from .signature import Bound, Signature, coordinates, features

TO_DENSE = Signature(
    "to_dense",
    (features("x", "n", "channels"), coordinates()),
    options=("batch", "shape", "channels_last"),
    known=("channels",),
)
GRID = ("batch", "axis1", "axis2", "axis3", "axis4")
FROM_DENSE = Signature("from_dense", (features("dense", *GRID), coordinates()), options=("channels_last",), known=GRID)


def to_dense(
    x: relax.Expr, coords: relax.Expr, batch: int, shape: tuple[int, int, int], channels_last: bool = False
) -> relax.Call:
    """Rows at their places in a dense grid, zeros elsewhere: the layout of spconv's `.dense()`.

    x float32, bfloat16 or float16 [N, C]; coords int32 [N, 4] as (batch, x, y, z), no row twice, in 0 to batch - 1 and within
    shape (X, Y, Z). Returns dtype of x, [batch, C, X, Y, Z], or with `channels_last` [batch, X, Y, Z, C].

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row of coords
    that lies outside of the grid or repeats another.
    """
    return _to(
        x=x,
        coords=coords,
        batch=check_int("to_dense", "batch", batch, 1),
        shape=triple("to_dense", "shape", shape, 1),
        channels_last=bool(channels_last),
    )


def _infer_to(bound: Bound) -> relax.TensorType:
    options = bound.options
    dims = grid_shape(options["batch"], bound.dims["channels"], options["shape"], options["channels_last"])
    return relax.TensorType(dims, bound.dtype)


def _legalize_to(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    options = bound.options
    spec = ToDense(bound.dims["channels"], options["batch"], options["shape"], bound.dtype, options["channels_last"])
    return call_spec(bb, spec, bound.call.args, bound.type)


_to = register_op(TO_DENSE, _legalize_to, _infer_to)


def from_dense(dense: relax.Expr, coords: relax.Expr, channels_last: bool = False) -> relax.Call:
    """The rows of a dense grid at given coordinates.

    dense float32, bfloat16 or float16 [B, C, X, Y, Z], or with `channels_last` [B, X, Y, Z, C], all dimensions known; coords
    int32 [N, 4] as (batch, x, y, z), within the grid. Returns dtype of dense, [N, C].

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row of coords
    outside of the grid.
    """
    return _from(dense=dense, coords=coords, channels_last=bool(channels_last))


def _grid(bound: Bound) -> tuple[int, int, tuple[int, ...]]:
    """Batch, channels and (X, Y, Z) of the grid."""
    batch, *rest = bound.shape(GRID)
    return (batch, rest[3], tuple(rest[:3])) if bound.options["channels_last"] else (batch, rest[0], tuple(rest[1:]))


def _infer_from(bound: Bound) -> relax.TensorType:
    _, channels, _ = _grid(bound)
    return relax.TensorType([bound.dims["n"], channels], bound.dtype)


def _legalize_from(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    batch, channels, shape = _grid(bound)
    spec = FromDense(channels, batch, shape, bound.dtype, bound.options["channels_last"])
    return call_spec(bb, spec, bound.call.args, bound.type)


_from = register_op(FROM_DENSE, _legalize_from, _infer_from)
