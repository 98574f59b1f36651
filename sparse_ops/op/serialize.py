"""Voxels along a space-filling curve, and windows of that sequence: `R.sparse_ops.serialize`, `serialized_partition`."""

from tvm import relax

from tir_kernels.spec.coordinate_index import BATCH_LIMIT
from tir_kernels.spec.serialize import MODES, CountCuts, CutSequence, Serialize, SerialKeys

from .index import emit_sizes, emit_tuple, int32, int32_of_rank, int64, triple
from .numbers import check_int
from .register import call_spec, check_choice, register_op
from .signature import Bound, Signature, coordinates
from .windows import LEAST_SHIFT, emit_groups

CURVE = ("mode", "shift")
SERIALIZE = Signature("serialize", (coordinates(),), options=CURVE)
PARTITION = Signature("serialized_partition", (coordinates(),), options=("window", "shift_sequence", *CURVE))


def serialize(coords: relax.Expr, mode: str = "z_order", shift=0) -> relax.Call:
    """The place of every row of coords int32 [N, 4] along a curve through x, y, z plus `shift`: codes int32 [N].

    mode: "z_order" (bits interleaved, x the most significant of every three) or "hilbert" (Skilling, AIP Conf. Proc. 707,
    2004), both of 10 bits an axis; with "_transposed" after exchanging x and y. shift: an int or three of at least -32768.

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row out of range
    (batch 0 to 4095; x, y, z 0 to 1023 after the shift).
    """
    return _serialize(coords=coords, **_curve("serialize", mode, shift))


def serialized_partition(
    coords: relax.Expr, window: int, shift_sequence: int = 0, shift=0, mode: str = "z_order"
) -> relax.Call:
    """Windows of rows that follow each other along a curve, which overlap in their keys: serialized attention of TRELLIS.

    The L rows of each batch element of coords int32 [N, 4], in any order, are sorted by their codes (`serialize`; equal
    codes by row) and cut into n = ceil(L / window) windows. Window i has the queries at places s + floor(i L / n) to
    s + floor((i + 1) L / n), modulo L, and the `window` keys around their centre, from s + floor((i + 1/2) L / n -
    window / 2). s is `shift_sequence`, an int of at least 0. A single window has all rows and is not shifted.

    Returns (q_order int32 [N], q_offsets int32 [W + 1], k_order int32 [M], k_offsets int32 [W + 1]), as `attention` takes
    them; W and M are known only at run time. Raises ValueError as `serialize`, and for window below 1.
    """
    name = "serialized_partition"
    window = check_int(name, "window", window, 1)
    shift_sequence = check_int(name, "shift_sequence", shift_sequence, 0)
    return _partition(coords=coords, window=window, shift_sequence=shift_sequence, **_curve(name, mode, shift))


def _curve(op: str, mode: str, shift) -> dict:
    """Attributes of a curve."""
    check_choice(op, "mode", mode, MODES)
    return {"mode": mode, "shift": triple(op, "shift", shift, LEAST_SHIFT)}


def _infer_serialize(bound: Bound) -> relax.TensorType:
    return int32(bound.dims["n"])


def _legalize_serialize(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    spec = Serialize(*(bound.options[name] for name in CURVE))
    return call_spec(bb, spec, bound.call.args, bound.type)


_serialize = register_op(SERIALIZE, _legalize_serialize, _infer_serialize)


def _infer_partition(bound: Bound) -> relax.TupleType:
    return relax.TupleType([int32(bound.dims["n"]), *[int32_of_rank(1)] * 3])


def _legalize_partition(bb: relax.BlockBuilder, bound: Bound) -> relax.Expr:
    coords, window = bound["coords"], bound.options["window"]
    code = bb.emit(serialize(coords, *(bound.options[name] for name in CURVE)))
    keys = bb.emit(call_spec(bb, SerialKeys(), [coords, code], coords.ty))
    order, _ = emit_groups(bb, keys)
    lengths, total = emit_tuple(bb, call_spec(bb, CountCuts(window), [keys], [int64(BATCH_LIMIT), int64(2)]), 2)
    windows, seen = emit_sizes(bb, total, 2)
    types = [bound.type.fields[0], int32(windows + 1), int32(seen), int32(windows + 1)]
    return call_spec(bb, CutSequence(window, bound.options["shift_sequence"]), [order, lengths], types)


_partition = register_op(PARTITION, _legalize_partition, _infer_partition)
