"""Sparse convolution of few channels a group, depthwise above all: a thread sums a few output channels of a slot.

Groups are too narrow for tensor cores, which would multiply zeros for most of the time. What is left is reading rows, and
threads side by side read channels side by side.
"""

from dataclasses import replace
from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..script import drop_parameters
from ..spec.sparse_conv import SparseConv
from .epilogue import Epilogue
from .gpu import Gpu, kernel_name
from .guards import match_status, reporting
from .map_sums import Fit, sum_slots, vector_of
from .neighbour_table import match_table

WIDE = 16  # channels of a group from which on tensor cores serve better


def refuses(spec: SparseConv, gpu: Gpu) -> str | None:
    """Why tensor cores serve better."""
    if spec.groups == 1 or min(spec.group_cin, spec.group_cout) >= WIDE:
        given = f"{spec.groups} of {spec.group_cin} to {spec.group_cout}"
        return f"groups: expected several of fewer than {WIDE} channels, given {given}"
    return None


def shared(spec: SparseConv, gpu: Gpu) -> SparseConv:
    """One kernel serves kernels of all sizes."""
    return replace(spec, kernel=(1, 1, 1), products="float")


@cache
def narrow_conv(spec: SparseConv, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `SparseConv`."""
    cin, cout, dtype, has_residual = spec.cin, spec.cout, spec.dtype, spec.has_residual
    depth, width = spec.group_cin, spec.group_cout
    vector = vector_of(cout)
    side_by_side = depth == width == 1  # channel c of the result reads channel c

    def adding(x, weight):
        """What adds a pair."""

        def add(values, tap, source, column, fast):
            own = T.alloc_buffer((vector,), dtype, scope="local")
            for c in range(depth):

                def one(e, c=c):
                    T.buffer_store(own, x[source, (column + e) // width * depth + c], [e])

                if side_by_side and vector > 1:
                    with T.If(fast):
                        with T.Then(), T.vectorized(vector) as e:
                            one(e)
                        with T.Else():
                            for e in range(vector):
                                one(e)
                else:
                    for e in range(vector):
                        one(e)
                for e in range(vector):
                    product = T.Cast("float32", own[e]) * T.Cast("float32", weight[column + e, tap, c])
                    T.buffer_store(values, values[e] + product, [e])

        return add

    @script.prim_func(s_tir=True)
    def kernel(
        feats_: T.handle,
        weight_: T.handle,
        bias_: T.handle,
        residual_: T.handle,
        neighbours_: T.handle,
        order_: T.handle,
        tiles_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        status_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("narrow_conv", dtype)})
        n, m, kx, ky, kz = T.int64(), T.int64(), T.int64(), T.int64(), T.int64()
        feats = match_buffer(feats_, (n, cin), dtype)
        weight = match_buffer(weight_, (cout, kx, ky, kz, depth), dtype)
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (m, cout), dtype)
        table = T.meta_var(match_table(neighbours_, order_, tiles_))
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (m, cout), dtype)
        by_tap = T.decl_buffer((cout, kx * ky * kz, depth), dtype, data=weight.data)
        own_residual = T.meta_var(residual if has_residual else None)
        epilogue = T.meta_var(Epilogue(out, spec.activation, bias, own_residual, in_vectors=cout % vector == 0))
        fit = T.meta_var(Fit(map_rows, n, m, kx * ky * kz))
        sum_slots(table, fit, status, epilogue, adding(feats, by_tap), [feats])

    return reporting(kernel if has_residual else drop_parameters(kernel, "residual"))
