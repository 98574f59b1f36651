"""Pooling through a kernel map, `R.sparse_ops.pool`, and over an index, `R.sparse_ops.segment_pool`."""

from tvm import relax

from tir_kernels.spec.pool import MODES, SEGMENT_MODES, Pool, Reduction
from tir_kernels.spec.segment_pool import SegmentPool

from .index import map_fields
from .memory import Of, call_granted, emit_grant
from .numbers import check_int
from .register import call_spec, check_choice, register_op
from .signature import Bound, Signature, features, rows_like
from .signature import index as index_argument
from .signature import kernel_map as map_argument

OPTIONS = ("mode", "count_bias", "max_from_zero")
POOL = Signature(
    "pool",
    (features("x", "n", "channels"), map_argument("n", "m"), rows_like("like", "m")),
    options=OPTIONS,
    known=("channels",),
    result=("m", "channels"),
)
SEGMENT_POOL = Signature(
    "segment_pool",
    (features("x", "n", "channels"), index_argument("index", "n"), rows_like("like", "m")),
    options=OPTIONS,
    known=("channels",),
    result=("m", "channels"),
)


def pool(
    x: relax.Expr,
    kernel_map: relax.Expr,
    like: relax.Expr,
    mode: str = "mean",
    count_bias: int = 0,
    max_from_zero: bool = False,
) -> relax.Call:
    """Sum, mean or maximum of the input rows that meet an output row at any tap; 0 where none does.

    x float32, bfloat16 or float16 [N, C]; kernel_map from `submanifold_map`, `strided_map` or `inverse_map`; like [M, ...], of
    any dtype, for its number of rows: the output coordinates. mode "sum", "mean" or "max". With "mean", `count_bias` is
    added to the number of rows that is divided by (1: as models do that average into a zero buffer which is itself
    counted); with "max", `max_from_zero` starts from 0, as spconv does on a CPU. A maximum over NaN is NaN, as in numpy, also
    from 0. Returns dtype of x, [M, C], reduced in float32.

    Raises ValueError naming the argument or option that does not fit and, from the running module, when the map was
    built for another number of rows.
    """
    return _pool(x=x, kernel_map=kernel_map, like=like, **_options("pool", MODES, mode, count_bias, max_from_zero))


def segment_pool(
    x: relax.Expr,
    index: relax.Expr,
    like: relax.Expr,
    mode: str = "mean",
    count_bias: int = 0,
    max_from_zero: bool = False,
) -> relax.Call:
    """Sum, mean, maximum or first of the rows that `index` sends to an output row: row i of x goes to out[index[i]].

    With the inverse of `downsample` it pools the features of a voxel; with the batch index, those of a batch element.
    x float32, bfloat16 or float16 [N, C]; index int32 [N], entries 0 to M - 1, or -1 for a row that goes nowhere; like
    [M, ...], of any dtype, for its number of rows; options as in `pool`, and mode "first" takes the row with the lowest number.
    A row that nothing goes to is 0. Rows are summed in their order, in float32. Returns dtype of x, [M, C].

    Raises ValueError naming the argument or option that does not fit and, from the running module, for the first entry
    of the index that is out of range, and for a result that does not fit into memory.
    """
    return _segment(x=x, index=index, like=like, **_options("segment_pool", SEGMENT_MODES, mode, count_bias, max_from_zero))


def _options(op: str, modes: tuple[str, ...], mode: str, count_bias: int, max_from_zero: bool) -> dict:
    check_choice(op, "mode", mode, modes)
    count_bias = check_int(op, "count_bias", count_bias, 0)
    if count_bias and mode != "mean":
        raise ValueError(f"sparse_ops.{op}: count_bias: expected 0 with mode {mode!r}, given {count_bias}")
    if max_from_zero and mode != "max":
        raise ValueError(f"sparse_ops.{op}: max_from_zero: expected False with mode {mode!r}, given True")
    return {"mode": mode, "count_bias": count_bias, "max_from_zero": bool(max_from_zero)}


def _reduction(bound: Bound) -> Reduction:
    return Reduction(*(bound.options[name] for name in OPTIONS))


def _legalize_pool(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = Pool(bound.dims["channels"], _reduction(bound), bound.dtype)
    return call_spec(bb, spec, [bound["x"], *map_fields(bb, bound["kernel_map"])], bound.type)


def _legalize_segment(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = SegmentPool(bound.dims["channels"], _reduction(bound), bound.dtype)
    rows = Of(bound["like"])
    granted = emit_grant(bb, "segment_pool", (bound.dtype, [rows, bound.dims["channels"]]), ("int32", [rows]))
    return call_granted(bb, spec, [bound["x"], bound["index"]], granted, bound.type)


_pool = register_op(POOL, _legalize_pool)
_segment = register_op(SEGMENT_POOL, _legalize_segment)
