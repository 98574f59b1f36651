"""`R.take` that stays within its input."""

import tvm
from tvm import relax

from .rewrite import Walk, op_is, rewrite_pass


def BoundTakes() -> tvm.transform.Pass:
    """`R.take` in "fast" mode, TVM's default -> in "clip" mode. Run before LegalizeOps.

    Both give the same where indices are in bounds. Elsewhere "fast" may end the process, and says so while compiling.
    """
    return rewrite_pass("BoundTakes", _bound)


def _bound(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if not op_is(call, "take") or str(call.attrs.mode) != "fast":
        return None
    return relax.op.take(*call.args, axis=None if call.attrs.axis is None else int(call.attrs.axis), mode="clip")
