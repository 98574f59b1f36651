"""bfloat16 or float16 inside of a float32 model, and integer products."""

from functools import partial

import tvm
from tvm import relax

from tir_kernels.dispatch import fastest_features

from ..op.register import check_choice, op_of
from .products import PRODUCTS_ONLY, IntegerProducts, has_integers
from .rewrite import Walk, op_is, rewrite_pass

QUANTIZED = ("int8", "int7")
PRECISIONS = ("float32", "bfloat16", "float16", *QUANTIZED)
WIDE = PRECISIONS[0]

MOVES = ("reshape", "permute_dims", "strided_slice", "concat")  # ops that compute nothing


def features_of(precision: str, target: tvm.target.Target | None = None) -> str:
    """The dtype of what flows between our ops in a model of `precision` on `target`, by default the current one: what it is
    called by, and of "int8" and "int7" what else is fastest there, "bfloat16" or "float32".

    Raises ValueError for another precision, and for a target that has no kernels.
    """
    check_choice("transform.features_of", "precision", precision, PRECISIONS)
    return fastest_features(target) if precision in QUANTIZED else precision


def gains(precision: str, target: tvm.target.Target | None = None) -> bool:
    """Whether "int8" or "int7" changes anything on `target`, by default the current one: where integers are not faster than
    floats all layers stay as they are. Of "float32", "bfloat16" and "float16" False. ValueError as `features_of`."""
    check_choice("transform.gains", "precision", precision, PRECISIONS)
    return precision in QUANTIZED and has_integers(precision, target)


def to_precision(precision: str) -> tvm.transform.Pass:
    """A pass after which our ops work on features and weights of `precision`, "float32" (nothing changes), "bfloat16" or
    "float16", whose values end at 65504: what is larger becomes infinite.

    Inputs, outputs and parameters stay float32, as do biases, norm weights, modulation tables and sums. What flows from one of
    our ops to another is of that type, the residual stream too. It could stay float32 only with a cast of its own before every
    norm and an addition behind every layer, and half of the error would be left: 24 transformer blocks of random weights in
    bfloat16 differ from float32 by 1.0% (relative L2), torch's by 1.1%. What other ops compute is float32; the casts around
    them fuse with them. Weights are cast where parameters are lifted or constants folded.

    In a function with the attribute `PRODUCTS_ONLY` all stays float32 but the inputs and weights of linear layers, which return
    float32: keys and values, attention, norms, convolutions and the residual stream are those of a float32 model, and there are
    no integer products. For networks in which few channels hold values hundreds of times as large as the others: what these
    lose by rounding is what the others are told apart by.

    "int8" and "int7" are `features_of(precision)` with integer products in the layers that `IntegerProducts` finds; which
    target that is for is asked when the pass runs.

    Raises ValueError for another precision.
    """
    check_choice("transform.to_precision", "precision", precision, PRECISIONS)
    if precision == WIDE:
        return tvm.transform.Sequential([])
    if precision in QUANTIZED:

        @tvm.transform.module_pass(opt_level=0, name=f"To{precision.capitalize()}")
        def quantized(mod: tvm.IRModule, context) -> tvm.IRModule:
            passes = [to_precision(features_of(precision)), IntegerProducts(precision)]
            return tvm.transform.Sequential(passes)(mod)

        return quantized
    rule = rewrite_pass(f"To{precision.capitalize()}", partial(_rule, precision))
    return tvm.transform.Sequential([rule, relax.transform.EliminateCommonSubexpr()])


def _rule(to: str, walk: Walk, call: relax.Call) -> relax.Expr | None:
    if walk.attrs.get(PRODUCTS_ONLY):
        return _products(to, walk, call)
    if op_is(call, "astype") and _dtype(call) == to:
        return _narrowed(walk, call.args[0], to)
    if (op := op_of(call)) is None or _dtype(call) != WIDE or not (names := op.signature.narrow_arguments(call)):
        return None
    narrow = {name: _narrow(walk, arg, to) for name, arg in op.signature.arguments_of(call).items() if name in names}
    return relax.op.astype(walk.emit(op.with_more(call, narrow, {})), WIDE)


def _products(to: str, walk: Walk, call: relax.Call) -> relax.Expr | None:
    """A linear layer whose inputs and weights alone are narrow; what it adds to is added behind it."""
    op = op_of(call)
    if op is None or op.signature.name != "linear" or _dtype(call) != WIDE or _dtype(call.args[0]) != WIDE:
        return None
    given, options = op.signature.arguments_of(call), op.signature.options_of(call)
    residual = given.get("residual")
    if _is_input(walk, given["x"]) or (residual is not None and options["activation"] != "none"):
        return None
    given |= {name: _narrow(walk, given[name], to) for name in ("x", "weight")}
    given.pop("residual", None)
    chosen = {name: value for name, value in (options | {"out_dtype": WIDE}).items() if value is not None}
    product = op.make(given, chosen)
    return product if residual is None else relax.op.add(walk.emit(product), residual)


def _is_input(walk: Walk, expr: relax.Expr) -> bool:
    """Whether nothing was computed of what an input of the function holds."""
    while (move := walk.call_of(expr, *MOVES)) is not None and not op_is(move, "concat"):
        expr = move.args[0]
    return isinstance(walk.value(expr), relax.Var)


def _narrow(walk: Walk, expr: relax.Expr, to: str) -> relax.Expr:
    narrow = _narrowed(walk, expr, to)
    return walk.astype(expr, to) if narrow is None else narrow


def _narrowed(walk: Walk, expr: relax.Expr, to: str) -> relax.Expr | None:
    """`expr` of dtype `to` where it was made from nothing but that, so that the way over float32 can be left out."""
    if _dtype(expr) == to:
        return expr
    if (cast := walk.call_of(expr, "astype")) is not None:
        return cast.args[0] if _dtype(cast.args[0]) == to else None
    if (move := walk.call_of(expr, *MOVES)) is None:
        return None
    first = move.args[0]
    if op_is(move, "concat"):
        parts = [_narrowed(walk, part, to) for part in walk.value(first).fields]
        source = None if None in parts else relax.Tuple(parts)
    else:
        source = _narrowed(walk, first, to)
    return None if source is None else walk.emit(relax.Call(move.op, [source, *move.args[1:]], move.attrs))


def _dtype(expr: relax.Expr) -> str | None:
    return str(expr.ty.dtype) if isinstance(expr.ty, relax.TensorType) else None
