"""Kernels whose equal calls need to be made once: what they return is only read, and other layers want the same."""

import tvm

SHARED = "tir_kernels.shared"  # attribute of such a kernel


def shared(kernel: tvm.tirx.PrimFunc) -> tvm.tirx.PrimFunc:
    """`kernel`, of which a call may take the result of an equal one before it."""
    return kernel.with_attr(SHARED, True)
