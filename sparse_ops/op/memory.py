"""Memory that depends on an extent or a size is asked for before it is allocated, see `tir_kernels.memory`."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import tvm
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.memory import ASK_BYTES
from tir_kernels.sizes import CHECK_SHAPE, CHECK_SIZES
from tir_kernels.spec import Spec
from tir_kernels.spec.memory import GrantMemory, Size

from .register import call_kernel, call_spec

MOST_BYTES = 1 << 62  # beyond them sizes of memory wrap while compiling


@dataclass(frozen=True, eq=False)
class Of:
    """The size of a tensor along an axis, where only the running module knows it.

    As a symbolic dimension it would be an argument of a kernel, which `CanonicalizeBindings` does not rename with its types.
    """

    tensor: relax.Expr
    axis: int = 0


Tensor = tuple[str, Sequence]  # a dtype and dimensions: ints, symbolic ones that were given to an op, and `Of`


def checked_sizes(what: str, sizes: Sequence, least: int = 0, dtype: str = "") -> relax.Call:
    """Sizes that the data decide as the shape that they are, once the running module has looked at them.

    It raises ValueError, which `what` begins, for one below `least`, and, with a `dtype`, where a tensor of that shape does not
    fit into memory. `match_cast` the shape to have the sizes.
    """
    arguments = [tvm.ir.StringImm(what), relax.prim_value(least), tvm.ir.StringImm(dtype), relax.ShapeExpr(list(sizes))]
    return relax.op.call_pure_packed(CHECK_SIZES, *arguments, ty_args=relax.ShapeType(ndim=len(sizes)))


def emit_checked_shape(bb: relax.BlockBuilder, what: str, tensor: relax.Expr, shape: Sequence) -> relax.Expr:
    """Emit the tensor with another shape than its type tells, once the running module has found that they are equal.

    It raises ValueError, which `what` begins, where they differ. A `match_cast` would do, if passes did not drop it; of this
    view memory planning knows that it shares memory.
    """
    given, expected = relax.ShapeExpr(tensor.ty.shape.values), relax.ShapeExpr(list(shape))
    check = relax.op.call_pure_packed(CHECK_SHAPE, tvm.ir.StringImm(what), given, expected, ty_args=expected.ty)
    ty = relax.TensorType(list(shape), str(tensor.ty.dtype))
    return bb.emit(relax.op.call_pure_packed("vm.builtin.reshape", tensor, bb.emit(check), ty_args=ty))


def emit_grant(bb: relax.BlockBuilder, op: str, *tensors: Tensor) -> relax.Expr | None:
    """Emit the question whether some tensors, a result first and then the scratch of its kernel, fit into memory together.

    The running module raises ValueError where they do not. None where they are known to be small. Pass it to
    `call_granted`: what a kernel takes is computed before its result is allocated. Raises ValueError for sizes that are known
    to be beyond any machine.
    """
    sized: list[relax.Expr] = []
    numbers: list[tvm.ir.Expr] = []

    def size(dim) -> int | Size:
        if isinstance(dim, int | tvm.tirx.IntImm):
            return int(dim)
        argument, among, axis = (dim.tensor, sized, dim.axis) if isinstance(dim, Of) else (dim, numbers, None)
        place = next((i for i, other in enumerate(among) if other.same_as(argument)), len(among))
        if place == len(among):
            among.append(argument)
        return Size(place, axis)

    asked = tuple((dtype, tuple(size(dim) for dim in shape)) for dtype, shape in tensors)
    if not sized and not numbers:
        taken = sum(tvm.DataType(dtype).itemsize * prod(shape) for dtype, shape in asked)
        if taken > MOST_BYTES:
            dtype, shape = asked[0]
            raise ValueError(f"sparse_ops.{op}: expected a result of at most 2^62 bytes, given {dtype} {list(shape)}")
        if taken <= ASK_BYTES:
            return None
        numbers.append(tvm.tirx.IntImm("int64", 1))  # what takes nothing is computed while compiling, on another machine maybe
    kinds = tuple((str(x.ty.dtype), x.ty.ndim) for x in sized)
    spec = GrantMemory(op, asked, kinds, len(numbers))
    return bb.emit(call_spec(bb, spec, [*sized, *numbers], relax.TensorType([1], "int64")))


def call_granted(bb: relax.BlockBuilder, spec: Spec, args: Sequence, granted: relax.Expr | None, out_ty) -> relax.Call:
    """`call_spec` once memory is granted: `granted` is what `emit_grant` returned, of which the kernel reads nothing."""
    return granted_call(bb, kernel_for(spec).function, args, granted, out_ty)


def granted_call(
    bb: relax.BlockBuilder, kernel: tvm.tirx.PrimFunc, args: Sequence, granted: relax.Expr | None, out_ty
) -> relax.Call:
    """As `call_granted`, for a kernel."""
    if granted is None:
        return call_kernel(bb, kernel, list(args), out_ty)
    parameter = tvm.tirx.decl_buffer((1,), "int64", "granted")
    params = [*kernel.params[: len(args)], parameter, *kernel.params[len(args) :]]
    taking = tvm.tirx.PrimFunc(params, kernel.body, kernel.ret_type, kernel.attrs)
    return call_kernel(bb, taking, [*args, granted], out_ty)
