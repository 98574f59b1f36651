"""Voxels along a space-filling curve, and windows of that sequence: `R.sparse_ops.serialize`, `serialized_partition`."""

from tvm import relax

from tir_kernels.spec.coordinate_index import BATCH_LIMIT
from tir_kernels.spec.serialize import MODES, CountCuts, CutSequence, Serialize, SerialKeys

from .index import check_coords, emit_sizes, emit_tuple, int32, int32_of_rank, int64, triple
from .register import call_spec, check_choice, register_op
from .shapes import check_int
from .windows import LEAST_SHIFT, emit_groups


def serialize(coords: relax.Expr, mode: str = "z_order", shift=0) -> relax.Call:
    """The place of every row of coords int32 [N, 4] along a curve through x, y, z plus `shift`: codes int32 [N].

    mode: "z_order" (bits interleaved, x the most significant of every three) or "hilbert" (Skilling, AIP Conf. Proc. 707,
    2004), both of 10 bits an axis; with "_transposed" after exchanging x and y. shift: an int or three of at least -32768.

    Raises ValueError naming the argument that does not fit and, from the running module, for the first row out of range
    (batch 0 to 4095; x, y, z 0 to 1023 after the shift).
    """
    return _serialize(coords, **_curve("serialize", mode, shift))


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
    check_int(name, "window", window, 1)
    check_int(name, "shift_sequence", shift_sequence, 0)
    return _partition(coords, window=window, shift_sequence=shift_sequence, **_curve(name, mode, shift))


def _curve(op: str, mode: str, shift) -> dict:
    """Attributes of a curve."""
    check_choice(op, "mode", mode, MODES)
    return {"mode": mode, "shift": list(triple(op, "shift", shift, LEAST_SHIFT))}


def _curve_of(attrs) -> tuple[str, tuple[int, ...]]:
    return str(attrs["mode"]), tuple(int(s) for s in attrs["shift"])


def _infer_serialize(call: relax.Call) -> relax.TensorType:
    return int32(check_coords(call, 0))


def _legalize_serialize(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    return call_spec(bb, Serialize(*_curve_of(call.attrs)), call.args, call.ty)


_serialize = register_op("serialize", _infer_serialize, _legalize_serialize)


def _infer_partition(call: relax.Call) -> relax.TupleType:
    return relax.TupleType([int32(check_coords(call, 0)), *[int32_of_rank(1)] * 3])


def _legalize_partition(bb: relax.BlockBuilder, call: relax.Call) -> relax.Expr:
    (coords,) = call.args
    window, shift_sequence = int(call.attrs["window"]), int(call.attrs["shift_sequence"])
    code = bb.emit(serialize(coords, *_curve_of(call.attrs)))
    keys = bb.emit(call_spec(bb, SerialKeys(), [coords, code], coords.ty))
    order, _ = emit_groups(bb, keys)
    lengths, total = emit_tuple(bb, call_spec(bb, CountCuts(window), [keys], [int64(BATCH_LIMIT), int64(2)]), 2)
    windows, seen = emit_sizes(bb, total, 2)
    offsets = int32(windows + 1)
    return call_spec(
        bb, CutSequence(window, shift_sequence), [order, lengths], [call.ty.fields[0], offsets, int32(seen), offsets]
    )


_partition = register_op("serialized_partition", _infer_partition, _legalize_partition)
