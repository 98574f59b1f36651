"""Linear layers of which only ranges of columns are read, such as q, k and v -> one linear layer to a range."""

import tvm
from tvm import relax

from .absorb import Absorber
from .layout import slice_of
from .rewrite import Walk, op_is, rewrite_pass, shape_of, static


def SplitLinear() -> tvm.transform.Pass:
    """`linear(x, weight, bias)[:, begin:end]` -> `linear(x, weight[begin:end], bias[begin:end])`, which leaves no copy.

    Only where nothing else of the layer is read, no column twice, and it has no gate and no residual. The weight is cut once
    where it is constant. Run `SimplifyLayout` before, which brings slices to the layer.
    """
    return rewrite_pass("SplitLinear", _split)


def _split(walk: Walk, call: relax.Call) -> relax.Expr | None:
    absorber = Absorber("linear")
    linear = absorber.call_of(walk, call.args[0]) if op_is(call, "strided_slice") else None
    if linear is None or absorber.given(linear).keys() - {"bias"}:
        return None
    readers = [walk.bound.get(reader) for reader in walk.readers.get(call.args[0], ())]
    parts = [
        slice_of(reader) if isinstance(reader, relax.Call) and op_is(reader, "strided_slice") else None for reader in readers
    ]
    if None in parts or any(axis != 1 for axis, _, _ in parts):
        return None
    if sum(end - begin for _, begin, end in parts) > static(shape_of(linear)[1]):
        return None
    _, begin, end = slice_of(call)
    columns = [name for name in absorber.signature.present(linear) if name != "x"]  # what has a row to each of them
    given = absorber.signature.arguments_of(linear)
    cut = {name: walk.emit(relax.op.strided_slice(given[name], [0], [begin], [end])) for name in columns}
    return absorber.op.with_more(linear, cut, {})
