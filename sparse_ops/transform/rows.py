"""Between tensors [..., C], as dense models hold them, and the rows [N, C] that our ops work on."""

import tvm
from tvm import relax, te

from ..op.signature import FLOATS
from .rewrite import Walk, product, same, same_shape, shape_of, static


def is_feature(expr: relax.Expr) -> bool:
    """Whether a value is a tensor of known shape that our ops take as features."""
    return shape_of(expr) is not None and str(expr.ty.dtype) in FLOATS


def rows_of(walk: Walk, x: relax.Expr) -> relax.Expr:
    """[..., C] -> [N, C]."""
    *rows, channels = shape_of(x)
    return walk.reshape(x, [product(rows), channels])


def vector_of(walk: Walk, expr: relax.Expr, channels) -> relax.Expr | None:
    """float32 [C] from a tensor that has one value to a channel, as [C] or [1, ..., 1, C]; None for any other."""
    shape = shape_of(expr)
    if not shape or not is_feature(expr) or not same(shape[-1], channels) or any(static(dim) != 1 for dim in shape[:-1]):
        return None
    return walk.astype(walk.reshape(expr, [channels]), "float32")


def table_of(walk: Walk, expr: relax.Expr, shape: list) -> tuple[relax.Expr, relax.Expr | None] | None:
    """(table float32 [B, C], batch index int32 [N] or None if B = 1) of a factor or summand of a tensor of `shape`.

    The factor is [C], or has a row to each batch element: [B, 1, ..., 1, C], where the tensor is [B, ..., C]. None where it
    is anything else.
    """
    if (vector := vector_of(walk, expr, shape[-1])) is not None:
        return walk.reshape(vector, [1, shape[-1]]), None
    given = shape_of(expr)
    if not given or not is_feature(expr) or len(given) != len(shape) or len(shape) < 3:
        return None
    if not same_shape([given[0], given[-1]], [shape[0], shape[-1]]) or any(static(dim) != 1 for dim in given[1:-1]):
        return None
    table = walk.astype(walk.reshape(expr, [shape[0], shape[-1]]), "float32")
    return table, None if static(shape[0]) == 1 else batch_index(walk, shape[0], product(shape[1:-1]))


def multiples(walk: Walk, count, step) -> relax.Var:
    """int32 [count + 1]: 0, step, 2 * step, ...: where `count` segments of `step` rows start."""

    def compute(count, step):
        return te.compute((count + 1,), lambda i: (i * step).astype("int32"), name="multiples")

    return walk.builder_.emit_te(compute, _dim(count), _dim(step), primfunc_name_hint="multiples")


def batch_index(walk: Walk, count, step) -> relax.Var:
    """int32 [count * step]: the batch element of every row, where each has `step` rows."""

    def compute(count, step):
        return te.compute((count * step,), lambda i: (i // step).astype("int32"), name="batch_index")

    return walk.builder_.emit_te(compute, _dim(count), _dim(step), primfunc_name_hint="batch_index")


def _dim(value) -> tvm.tirx.Expr:
    return tvm.tirx.IntImm("int64", value) if isinstance(value, int) else value
