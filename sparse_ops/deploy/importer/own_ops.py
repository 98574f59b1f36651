"""Our ops, `torch.ops.sparse_ops.*`, as calls of `sparse_ops.op`: one converter for all of them."""

from functools import partial

from tvm import relax

from sparse_ops.torch.ops import NAMESPACE, TORCH_OPS, TorchOp
from tir_kernels.dispatch import PAIRS

from .context import Context
from .registry import converts

EXTENTS = {"batch", "shape"}  # arguments that are at least 1, which a number from the data need not be


def _convert(made: TorchOp, context: Context) -> list[relax.Expr]:
    """A call of an op of ours. Sizes that the data decide get a fresh name, one that stands twice the same."""
    arguments, options = made.gathered((), context.args)
    for name in EXTENTS & arguments.keys():
        given = arguments[name]
        dims = context.checked(given if isinstance(given, list) else [given], 1, what=f"{context.op}: {name}")
        arguments[name] = dims if isinstance(given, list) else dims[0]
    taken = {name: relax.Tuple(value) if made.is_map(name) else value for name, value in arguments.items()}
    found, sizes = [], {}
    for tensor, dims in zip(context.emit_all(made.make(**taken, **options)), made.flat_results, strict=True):
        if tensor.ty.shape is not None:
            known = zip(dims, tensor.ty.shape.values, strict=False)
            sizes = {dim: size for dim, size in known if isinstance(dim, str)} | sizes
        elif dims not in PAIRS.DIMS:  # nobody asks how long the arrays of a map are
            shape = [dim if isinstance(dim, int) else sizes.setdefault(dim, context.size(dim)) for dim in dims]
            tensor = context.named(tensor, shape)
        found.append(tensor)
    return found


for _made in TORCH_OPS.values():
    converts(f"{NAMESPACE}::{_made.name}")(partial(_convert, _made))
