"""Memory that depends on an extent or a size is asked for before it is allocated, see `tir_kernels.memory`."""

from collections.abc import Sequence
from math import prod

import tvm
from tvm import relax

from tir_kernels.dispatch import kernel_for
from tir_kernels.memory import ASK_BYTES
from tir_kernels.spec import Spec
from tir_kernels.spec.memory import GrantMemory

from .register import call_kernel, call_spec

MOST_BYTES = 1 << 62  # beyond them sizes of memory wrap while compiling

Tensor = tuple[str, Sequence]  # a dtype and dimensions


def emit_grant(bb: relax.BlockBuilder, op: str, *tensors: Tensor) -> relax.Expr | None:
    """Emit the question whether some tensors, a result first and then the scratch of its kernel, fit into memory together.

    The running module raises ValueError where they do not. None where they are known to be small. Pass it to
    `call_granted`: what a kernel takes is computed before its result is allocated. Raises ValueError for sizes that are known
    to be beyond any machine.
    """
    dims = [_int64(dim) for _, shape in tensors for dim in shape]
    if all(isinstance(dim, tvm.tirx.IntImm) for dim in dims):
        size = sum(tvm.DataType(dtype).itemsize * prod(int(dim) for dim in shape) for dtype, shape in tensors)
        if size > MOST_BYTES:
            dtype, shape = tensors[0]
            raise ValueError(
                f"sparse_ops.{op}: expected a result of at most 2^62 bytes, given {dtype} {[int(dim) for dim in shape]}"
            )
        if size <= ASK_BYTES:
            return None
    kinds = tuple((dtype, len(shape)) for dtype, shape in tensors)
    return bb.emit(call_spec(bb, GrantMemory(op, kinds), dims, relax.TensorType([1], "int64")))


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


def _int64(dim) -> tvm.ir.Expr:
    return tvm.tirx.IntImm("int64", dim) if isinstance(dim, int) else dim
