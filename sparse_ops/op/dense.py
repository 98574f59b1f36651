"""Between sparse rows and a dense grid, `R.sparse_ops.to_dense` and `R.sparse_ops.from_dense`."""

from tvm import relax

from tir_kernels.spec.dense import FromDense, ToDense, grid_shape

from .index import check_coords, triple
from .register import FLOATS, call_spec, check_tensor, register_op
from .shapes import check_int, known


def to_dense(
    x: relax.Expr, coords: relax.Expr, batch: int, shape: tuple[int, int, int], channels_last: bool = False
) -> relax.Call:
    """Rows at their places in a dense grid, zeros elsewhere: the layout of spconv's `.dense()`.

    x float32 or bfloat16 [N, C]; coords int32 [N, 4] as (batch, x, y, z), no row twice, in 0 to batch - 1 and within
    shape (X, Y, Z). Returns dtype of x, [batch, C, X, Y, Z], or with `channels_last` [batch, X, Y, Z, C].

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row of coords
    that lies outside of the grid or repeats another.
    """
    return _to(
        x,
        coords,
        batch=check_int("to_dense", "batch", batch, 1),
        shape=list(triple("to_dense", "shape", shape, 1)),
        channels_last=bool(channels_last),
    )


def _infer_to(call: relax.Call) -> relax.TensorType:
    rows, channels = check_tensor(call, 0, "x", (None, None), FLOATS)
    known(call, "x", [channels])
    check_tensor(call, 1, "coords", (rows, 4), ("int32",))
    attrs = call.attrs
    shape = [int(extent) for extent in attrs["shape"]]
    dims = grid_shape(int(attrs["batch"]), int(channels), shape, bool(attrs["channels_last"]))
    return relax.TensorType(dims, str(call.args[0].ty.dtype))


def _legalize_to(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    attrs = call.attrs
    shape = tuple(int(extent) for extent in attrs["shape"])
    channels = int(call.args[0].ty.shape.values[1])
    spec = ToDense(channels, int(attrs["batch"]), shape, str(call.ty.dtype), bool(attrs["channels_last"]))
    return call_spec(bb, spec, call.args, call.ty)


_to = register_op("to_dense", _infer_to, _legalize_to)


def from_dense(dense: relax.Expr, coords: relax.Expr, channels_last: bool = False) -> relax.Call:
    """The rows of a dense grid at given coordinates.

    dense float32 or bfloat16 [B, C, X, Y, Z], or with `channels_last` [B, X, Y, Z, C], all dimensions known; coords
    int32 [N, 4] as (batch, x, y, z), within the grid. Returns dtype of dense, [N, C].

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row of coords
    outside of the grid.
    """
    return _from(dense, coords, channels_last=bool(channels_last))


def _grid(call: relax.Call) -> tuple[int, int, tuple[int, ...]]:
    """Batch, channels and (X, Y, Z) of the grid."""
    batch, *rest = known(call, "dense", check_tensor(call, 0, "dense", (None,) * 5, FLOATS))
    return (batch, rest[3], tuple(rest[:3])) if call.attrs["channels_last"] else (batch, rest[0], tuple(rest[1:]))


def _infer_from(call: relax.Call) -> relax.TensorType:
    _, channels, _ = _grid(call)
    return relax.TensorType([check_coords(call, 1), channels], str(call.args[0].ty.dtype))


def _legalize_from(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    batch, channels, shape = _grid(call)
    spec = FromDense(channels, batch, shape, str(call.ty.dtype), bool(call.attrs["channels_last"]))
    return call_spec(bb, spec, call.args, call.ty)


_from = register_op("from_dense", _infer_from, _legalize_from)
