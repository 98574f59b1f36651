"""Step 2, float16: what BF16ComputeLegalize does for bfloat16, which TVM has not for float16."""

from tvm import ir, tirx
from tvm_ffi import structural_map

from .nodes import collect, substitute

NARROW, WIDE = "float16", "float32"
BINARY = (tirx.Add, tirx.Sub, tirx.Mul, tirx.Div, tirx.Mod, tirx.FloorDiv, tirx.FloorMod, tirx.Min, tirx.Max)


def computed_in_float32(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """`func`, without blocks, with float16 in parameters only: buffers that stay inside are float32, as is all arithmetic.

    Values are widened where they are loaded and rounded once, where they are stored.
    """
    inside = {
        node.buffer: tirx.decl_buffer(node.buffer.shape, WIDE, node.buffer.name)
        for node in collect(func.body, tirx.AllocBuffer)
        if str(node.buffer.dtype) == NARROW
    }
    variables = [node.var for node in collect(func.body, (tirx.Let, tirx.Bind)) if _is_half(node.var)]
    body = substitute(func.body, inside | {var: tirx.Var(var.name, WIDE) for var in variables})
    rules = [
        (ir.TensorLoad, _load),
        (tirx.BufferStore, _store),
        (tirx.FloatImm, lambda number: tirx.FloatImm(WIDE, number.value) if _is_half(number) else number),
        (BINARY, lambda node: type(node)(node.a, node.b) if _is_half(node) else node),
        (tirx.Select, lambda node: tirx.Select(node.condition, node.true_value, node.false_value) if _is_half(node) else node),
        (tirx.Let, lambda node: tirx.Let(node.var, node.value, node.body) if _is_half(node) else node),
        (tirx.Cast, _cast),
        (ir.Call, lambda call: ir.Call(call.op, call.args, call.attrs, ret_ty=ir.PrimType(WIDE)) if _is_half(call) else call),
    ]
    return func.with_body(structural_map(body, rules))


def _is_half(expr: ir.Expr) -> bool:
    return isinstance(expr.ty, ir.PrimType) and str(expr.ty.dtype) == NARROW


def _load(load: ir.TensorLoad) -> ir.Expr:
    if str(load.source.dtype) == NARROW:
        return tirx.Cast(WIDE, load)
    return tirx.BufferLoad(load.source, load.indices) if _is_half(load) else load


def _store(store: tirx.BufferStore) -> tirx.BufferStore:
    if str(store.buffer.dtype) != NARROW:
        return store
    value = store.value
    copied = isinstance(value, tirx.Cast) and _is_half(value.value)
    return tirx.BufferStore(store.buffer, value.value if copied else tirx.Cast(NARROW, value), store.indices)


def _cast(cast: tirx.Cast) -> ir.Expr:
    to = WIDE if _is_half(cast) else str(cast.ty.dtype)
    return cast.value if str(cast.value.ty.dtype) == to else tirx.Cast(to, cast.value)
