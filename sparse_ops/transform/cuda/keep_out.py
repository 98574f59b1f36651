"""Kernels for a device stay where the device runs them, and out of what packs parameters, which may run on another machine."""

import tvm
from tvm import relax

from tir_kernels.cuda.gpu import ON_DEVICE

from ..rewrite import Walk, op_is, rewrite_pass


def KeepOnDevice() -> tvm.transform.Pass:
    """Module pass: calls of hand-written kernels are not lifted by `LiftParams`, even if they depend on parameters alone.

    Run it right before `LiftParams`, which removes the marks that it leaves.
    """
    return rewrite_pass("KeepOnDevice", _rule)


def _rule(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if not op_is(call, "call_tir") or ON_DEVICE not in (walk.builder_.get()[call.args[0]].attrs or {}):
        return None
    fields = list(call.args[1].fields)
    place = next((i for i, field in enumerate(fields) if isinstance(field.ty, relax.TensorType)), None)  # others are numbers
    if place is None or walk.call_of(fields[place], "builtin.stop_lift_params"):
        return None
    fields[place] = walk.emit(relax.op.builtin.stop_lift_params(fields[place]))
    return relax.Call(call.op, [call.args[0], relax.Tuple(fields), *call.args[2:]], call.attrs, call.ty_args)
