"""Layer normalisation over channels that do not come last, with the activation behind it -> `sparse_ops.channel_layer_norm`."""

import tvm
from tvm import relax

from ..op.channel_layer_norm import channel_layer_norm
from .absorb import recognizer
from .rewrite import Walk, axes_of, product, rewrite_pass, same_shape, shape_of, static
from .rows import is_feature, vector_of


def RecognizeChannelLayerNorm() -> tvm.transform.Pass:
    """`R.nn.layer_norm` between a transposition that brings the channels of [B, C, *spatial] to the end and its inverse
    -> `R.sparse_ops.channel_layer_norm`, which transposes nothing, with an activation if nothing else reads it.

    Run `SimplifyLayout` and `RecognizeActivation` before.
    """
    return rewrite_pass("RecognizeChannelLayerNorm", recognizer("channel_layer_norm", _norm, "permute_dims"))


def _norm(walk: Walk, call: relax.Call) -> relax.Expr | None:
    axes, shape = axes_of(call), shape_of(call)
    place = axes.index(len(axes) - 1)
    if not is_feature(call) or place == len(axes) - 1 or axes != [*range(place), len(axes) - 1, *range(place, len(axes) - 1)]:
        return None
    norm = walk.call_of(_before_reshape(walk, call.args[0]), "nn.layer_norm")
    if norm is None or [int(axis) % norm.ty.ndim for axis in norm.attrs.axes] != [norm.ty.ndim - 1]:
        return None
    there = walk.call_of(_before_reshape(walk, norm.args[0]), "permute_dims")
    if there is None or [axes_of(there)[axis] for axis in axes] != list(range(len(axes))):
        return None
    x, channels = there.args[0], shape[place]
    if not same_shape(shape_of(x), shape) or static(channels) is None or not (norm.attrs.center and norm.attrs.scale):
        return None
    weight, bias = (vector_of(walk, vector, channels) for vector in norm.args[1:])
    rows = walk.reshape(x, [product(shape[:place]), *shape[place:]])
    return walk.reshape(walk.emit(channel_layer_norm(rows, weight, bias, float(norm.attrs.epsilon))), shape)


def _before_reshape(walk: Walk, expr: relax.Expr) -> relax.Expr:
    """What was reshaped, if its channels, at the end, were kept."""
    reshape = walk.call_of(expr, "reshape")
    if reshape is None or not same_shape(shape_of(reshape.args[0])[-1:], shape_of(expr)[-1:]):
        return expr
    return reshape.args[0]
