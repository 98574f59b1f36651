"""Batch normalisation with running statistics -> `sparse_ops.channel_affine`, and that into the weights before it."""

import tvm
from tvm import relax

from ..op.channel_affine import affine_of_batch_norm, channel_affine
from .absorb import Absorber
from .rewrite import Walk, op_is, rewrite_pass, same_shape, shape_of, static
from .rows import is_feature, vector_of

AFFINE = "channel_affine"
FOLDS = ("conv3d", "linear", "sparse_conv", "upsampled_conv")  # channels are axis 1 of their results and 0 of their weights


def RecognizeBatchNorm() -> tvm.transform.Pass:
    """`R.nn.batch_norm` of [N, C] or [B, C, *spatial], not in training -> `R.sparse_ops.channel_affine`."""
    return rewrite_pass("RecognizeBatchNorm", _recognize)


def _recognize(walk: Walk, call: relax.Call) -> relax.Expr | None:
    if not op_is(call, "nn.batch_norm"):
        return None
    (x, weight, bias, mean, variance), attrs = call.args, call.attrs
    rank = x.ty.ndim
    if not is_feature(x) or rank < 2 or int(attrs.axis) % rank != 1 or attrs.training or static(shape_of(x)[1]) is None:
        return None
    vectors = [vector_of(walk, vector, shape_of(x)[1]) for vector in (mean, variance, weight, bias)]
    if None in vectors:
        return None
    used = [*vectors[:2], vectors[2] if attrs.scale else None, vectors[3] if attrs.center else None]
    scale, shift = map(walk.emit, affine_of_batch_norm(*used, float(attrs.epsilon)))
    return relax.Tuple([walk.emit(channel_affine(x, scale, shift)), mean, variance])  # the statistics stay as they are


def FoldBatchNorm() -> tvm.transform.Pass:
    """`channel_affine` directly behind a convolution or a linear layer becomes part of weight and bias, and what follows
    (a residual, an activation) part of the layer.

    weight' = weight * scale, bias' = bias * scale + shift: only where nothing else reads the layer's result, it has neither
    activation, residual nor gate, and weight, scale and shift are made of constants and of parameters (those behind
    `num_input` inputs) alone. Then it is done once, while compiling or packing, in float32. Run it before weights are
    narrowed, so that they are rounded once. What does not fold takes in the activation behind it.

    Run `RecognizeBatchNorm`, `RecognizeConv` and `RecognizeLinear` before.
    """
    absorbers = [Absorber(name) for name in (*FOLDS, AFFINE)]

    def rule(walk: Walk, call: relax.Call) -> relax.Expr | None:
        if op_is(call, f"sparse_ops.{AFFINE}"):
            return _fold(walk, call)
        return next((found for absorber in absorbers if (found := absorber.absorb(walk, call)) is not None), None)

    return rewrite_pass("FoldBatchNorm", rule)


def _fold(walk: Walk, call: relax.Call) -> relax.Expr | None:
    x, scale, shift = call.args
    layer = _layer_behind(walk, x)
    if layer is None or not all(_is_known(walk, value, {}) for value in (layer.args[1], scale, shift)):
        return None
    absorber = Absorber(layer.op.name.split(".")[-1])
    signature = absorber.signature
    given, weight = absorber.given(layer), signature.arguments_of(layer)["weight"]
    if given.keys() - {"bias"} or signature.options_of(layer)["activation"] != "none":
        return None
    if "bias" in given:
        if not _is_known(walk, given["bias"], {}):
            return None
        shift = walk.emit(relax.op.add(walk.emit(relax.op.multiply(given["bias"], scale)), shift))
    by_row = walk.reshape(scale, [shape_of(scale)[0], *[1] * (weight.ty.ndim - 1)])
    wide = walk.emit(relax.op.multiply(walk.astype(weight, "float32"), by_row))
    folded = {"weight": walk.astype(wide, str(weight.ty.dtype)), "bias": shift}
    activation = str(call.attrs["activation"])
    return walk.reshape(walk.emit(absorber.op.with_more(layer, folded, {"activation": activation})), shape_of(call))


def _layer_behind(walk: Walk, x: relax.Expr) -> relax.Call | None:
    """The call that made a value and nothing else reads, through reshapes that keep the first two axes."""
    while walk.is_read_once(x):
        if (found := walk.call_of(x, *(f"sparse_ops.{name}" for name in FOLDS))) is not None:
            return found
        reshape = walk.call_of(x, "reshape")
        if reshape is None or not same_shape((shape_of(reshape.args[0]) or [])[:2], shape_of(x)[:2]):
            return None
        x = reshape.args[0]
    return None


def _is_known(walk: Walk, expr: relax.Expr, found: dict) -> bool:
    """Whether a value is made of constants and parameters alone; `found`: what is known of variables."""
    if isinstance(expr, relax.Var) and expr in found:
        return found[expr]
    value = walk.value(expr)
    if isinstance(value, relax.Call):
        known = all(_is_known(walk, arg, found) for arg in value.args)
    elif isinstance(value, relax.Tuple):
        known = all(_is_known(walk, field, found) for field in value.fields)
    elif isinstance(value, relax.TupleGetItem):
        known = _is_known(walk, value.tuple_value, found)
    elif isinstance(value, relax.ShapeExpr):
        known = None not in map(static, value.values)
    else:
        known = value in walk.parameters if isinstance(value, relax.Var) else isinstance(value, tvm.ir.GenericConst)
    if isinstance(expr, relax.Var):
        found[expr] = known
    return known
