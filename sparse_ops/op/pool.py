"""Pooling through a kernel map, `R.sparse_ops.pool`, and over an index, `R.sparse_ops.segment_pool`."""

from tvm import relax

from tir_kernels.spec.pool import MODES, Pool, Reduction
from tir_kernels.spec.segment_pool import SegmentPool

from .index import check_map, map_fields
from .register import FLOATS, call_spec, check_choice, check_tensor, register_op
from .shapes import check_int, known, rows_of


def pool(
    x: relax.Expr,
    kernel_map: relax.Expr,
    like: relax.Expr,
    mode: str = "mean",
    count_bias: int = 0,
    max_from_zero: bool = False,
) -> relax.Call:
    """Sum, mean or maximum of the input rows that meet an output row at any tap; 0 where none does.

    x float32 or bfloat16 [N, C]; kernel_map from `submanifold_map`, `strided_map` or `inverse_map`; like [M, ...], of
    any dtype, for its number of rows: the output coordinates. mode "sum", "mean" or "max". With "mean", `count_bias` is
    added to the number of rows that is divided by (1: as models do that average into a zero buffer which is itself
    counted); with "max", `max_from_zero` starts from 0, as spconv does on a CPU. Returns dtype of x, [M, C], reduced in
    float32.

    Raises ValueError naming the argument or option that does not fit and, from the running module, when the map was
    built for another number of rows.
    """
    return _pool(x, kernel_map, like, **_options("pool", mode, count_bias, max_from_zero))


def segment_pool(
    x: relax.Expr,
    index: relax.Expr,
    like: relax.Expr,
    mode: str = "mean",
    count_bias: int = 0,
    max_from_zero: bool = False,
) -> relax.Call:
    """Sum, mean or maximum of the rows that `index` sends to an output row: row i of x goes to out[index[i]].

    With the inverse of `downsample` it pools the features of a voxel; with the batch index, those of a batch element.
    x float32 or bfloat16 [N, C]; index int32 [N], entries 0 to M - 1, or -1 for a row that goes nowhere; like [M, ...],
    of any dtype, for its number of rows; options as in `pool`. A row that nothing goes to is 0. Rows are summed in
    their order, in float32. Returns dtype of x, [M, C].

    Raises ValueError naming the argument or option that does not fit and, from the running module, for the first entry
    of the index that is out of range.
    """
    return _segment(x, index, like, **_options("segment_pool", mode, count_bias, max_from_zero))


def _options(op: str, mode: str, count_bias: int, max_from_zero: bool) -> dict:
    check_choice(op, "mode", mode, MODES)
    if check_int(op, "count_bias", count_bias, 0) and mode != "mean":
        raise ValueError(f"sparse_ops.{op}: count_bias: expected 0 with mode {mode!r}, given {count_bias}")
    if max_from_zero and mode != "max":
        raise ValueError(f"sparse_ops.{op}: max_from_zero: expected False with mode {mode!r}, given True")
    return {"mode": mode, "count_bias": count_bias, "max_from_zero": bool(max_from_zero)}


def _reduction(call: relax.Call) -> Reduction:
    attrs = call.attrs
    return Reduction(str(attrs["mode"]), int(attrs["count_bias"]), bool(attrs["max_from_zero"]))


def _out(call: relax.Call) -> relax.TensorType:
    channels = call.args[0].ty.shape.values[1]
    known(call, "x", [channels])
    return relax.TensorType([rows_of(call, 2, "like"), channels], str(call.args[0].ty.dtype))


def _infer_pool(call: relax.Call) -> relax.TensorType:
    check_tensor(call, 0, "x", (None, None), FLOATS)
    check_map(call, 1)
    return _out(call)


def _legalize_pool(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    x, kernel_map, _ = call.args
    spec = Pool(int(call.ty.shape.values[1]), _reduction(call), str(call.ty.dtype))
    return call_spec(bb, spec, [x, *map_fields(bb, kernel_map)], call.ty)


def _infer_segment(call: relax.Call) -> relax.TensorType:
    rows, _ = check_tensor(call, 0, "x", (None, None), FLOATS)
    check_tensor(call, 1, "index", (rows,), ("int32",))
    return _out(call)


def _legalize_segment(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    spec = SegmentPool(int(call.ty.shape.values[1]), _reduction(call), str(call.ty.dtype))
    return call_spec(bb, spec, call.args[:2], call.ty)


_pool = register_op("pool", _infer_pool, _legalize_pool)
_segment = register_op("segment_pool", _infer_segment, _legalize_segment)
