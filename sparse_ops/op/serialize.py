"""Voxels along a space-filling curve, and windows of that sequence: `R.sparse_ops.serialize`, `serialized_partition`."""

from tvm import relax

from tir_kernels.spec.coordinate_index import BATCH_LIMIT
from tir_kernels.spec.serialize import BITS, MODES, MOST_BITS, CountCuts, CutSequence, Serialize, SerialKeys, code_dtype

from .index import dimensions, emit_sizes, emit_tuple, int32, int32_of_rank, int64
from .numbers import check_int
from .register import call_spec, check_choice, register_op
from .signature import Bound, Signature, coordinates, extents
from .windows import LEAST_SHIFT, SHIFT, emit_groups, numbers

CURVE = ("mode", "bits")
SERIALIZE = Signature("serialize", (coordinates(), extents("shift", *SHIFT, optional=True)), options=CURVE)
PARTITION = Signature(
    "serialized_partition",
    (
        coordinates(),
        extents("window", "window"),
        extents("shift_sequence", "shift_sequence", optional=True),
        extents("shift", *SHIFT, optional=True),
    ),
    options=CURVE,
)


def serialize(coords: relax.Expr, mode: str = "z_order", shift=0, bits: int = BITS) -> relax.Call:
    """The place of every row of coords int32 [N, 4] along a curve through x, y, z plus `shift`: codes [N].

    mode: "z_order" (bits interleaved, x the most significant of every three) or "hilbert" (Skilling, AIP Conf. Proc. 707,
    2004); with "_transposed" after exchanging x and y. shift: an int or three of at least -32768, or symbolic dimensions.
    bits: of an axis, 1 to 16. The 10 of TRELLIS take 0 to 1023 after the shift; 16 with shift 32768 take all coordinates.
    More bits leave a Z-order as it is, and turn a Hilbert curve. Codes are int32, above 10 bits int64.

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row out of range
    (batch 0 to 4095; x, y, z 0 to 2^bits - 1 after the shift).
    """
    return _serialize(coords=coords, **_curve("serialize", mode, shift, bits))


def serialized_partition(
    coords: relax.Expr, window, shift_sequence=0, shift=0, mode: str = "z_order", bits: int = BITS
) -> relax.Call:
    """Windows of rows that follow each other along a curve, which overlap in their keys: serialized attention of TRELLIS.

    The L rows of each batch element of coords int32 [N, 4], in any order, are sorted by their codes (`serialize`; equal
    codes by row) and cut into n = ceil(L / window) windows. Window i has the queries at places s + floor(i L / n) to
    s + floor((i + 1) L / n), modulo L, and the `window` keys around their centre, from s + floor((i + 1/2) L / n -
    window / 2). s is `shift_sequence`, an int of at least 0 or a symbolic dimension. A single window has all rows and
    is not shifted.

    Returns (q_order int32 [N], q_offsets int32 [W + 1], k_order int32 [M], k_offsets int32 [W + 1]), as `attention` takes
    them; W and M are known only at run time. `window` is an int of at least 1 or a symbolic dimension. Raises ValueError as
    `serialize`, and for window below 1.
    """
    name = "serialized_partition"
    rows = dimensions(name, "window", window, 1, count=1)
    moved = dimensions(name, "shift_sequence", shift_sequence, 0, count=1)
    return _partition(coords=coords, window=rows, shift_sequence=moved, **_curve(name, mode, shift, bits))


def check_curve(op: str, mode: str, bits: int) -> None:
    """ValueError unless there is a curve of this mode and number of bits."""
    check_choice(op, "mode", mode, MODES)
    if check_int(op, "bits", bits, 1) > MOST_BITS:
        raise ValueError(f"sparse_ops.{op}: bits: expected 1 to {MOST_BITS}, given {bits}")


def _curve(op: str, mode: str, shift, bits: int) -> dict:
    """Arguments and options of a curve."""
    check_curve(op, mode, bits)
    return {"mode": mode, "bits": bits, "shift": dimensions(op, "shift", shift, LEAST_SHIFT)}


def _infer_serialize(bound: Bound) -> relax.TensorType:
    return relax.TensorType([bound.dims["n"]], code_dtype(bound.options["bits"]))


def _legalize_serialize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = Serialize(*(bound.options[name] for name in CURVE))
    return call_spec(bb, spec, [bound["coords"], *numbers(bound, "shift")], bound.type)


_serialize = register_op(SERIALIZE, _legalize_serialize, _infer_serialize)


def _infer_partition(bound: Bound) -> relax.TupleType:
    return relax.TupleType([int32(bound.dims["n"]), *[int32_of_rank(1)] * 3])


def _legalize_partition(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    coords, window, (mode, bits) = bound["coords"], bound.dims["window"], (bound.options[name] for name in CURVE)
    code = bb.emit(_serialize(coords=coords, mode=mode, bits=bits, shift=relax.ShapeExpr(numbers(bound, "shift"))))
    keys = bb.emit(call_spec(bb, SerialKeys(bits), [coords, code], coords.ty))
    order, _ = emit_groups(bb, keys)
    lengths, total = emit_tuple(bb, call_spec(bb, CountCuts(), [keys, window], [int64(BATCH_LIMIT), int64(2)]), 2)
    windows, seen = emit_sizes(bb, total, 2)
    types = [bound.type.fields[0], int32(windows + 1), int32(seen), int32(windows + 1)]
    return call_spec(bb, CutSequence(), [order, lengths, window, *numbers(bound, "shift_sequence")], types)


_partition = register_op(PARTITION, _legalize_partition, _infer_partition)
