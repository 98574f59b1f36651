"""Convolution after nearest upsampling: products with a group of taps, made at the coarse sites, are added at the fine ones."""

from functools import cache

import tvm
from tvm.script import tirx as T

from .. import script
from ..buffers import match_buffer
from ..guards import RAISE_PARENT
from ..script import drop_parameters
from ..spec.upsampled_conv import AddTaps
from .epilogue import Epilogue
from .gpu import Gpu, kernel_name
from .guards import check_entries, match_status, reporting
from .map_sums import Fit, sum_slots, vector_of
from .neighbour_table import match_table


@cache
def add_taps(spec: AddTaps, gpu: Gpu) -> tvm.tirx.PrimFunc:
    """See `AddTaps`."""
    cout, taps, group, residual_dtype, dtype = spec.cout, spec.taps, spec.group, spec.residual_dtype, spec.dtype
    has_residual = residual_dtype is not None
    vector = vector_of(cout)

    def adding(y, parent, rows):
        """What adds a pair: of the taps of the group, and of sites that have a parent."""

        def add(values, tap, source, column, fast):
            coarse = T.bind(T.Cast("int64", parent[source]))
            of_group = T.And(tap >= group.start, tap < group.stop)
            with T.If(T.And(of_group, T.And(coarse >= 0, coarse < rows))), T.Then():
                for e in range(vector):
                    T.buffer_store(values, values[e] + y[coarse, (tap - group.start) * cout + column + e], [e])

        return add

    @script.prim_func(s_tir=True)
    def kernel(
        y_: T.handle,
        bias_: T.handle,
        residual_: T.handle,
        parent_: T.handle,
        neighbours_: T.handle,
        order_: T.handle,
        tiles_: T.handle,
        map_rows: T.Buffer((2,), "int64"),
        status_: T.handle,
        out_: T.handle,
    ):
        T.func_attr({"tirx.noalias": True, "global_symbol": kernel_name("add_taps", dtype)})
        m, n = T.int64(), T.int64()
        y = match_buffer(y_, (m, len(group) * cout), "float32")
        bias = match_buffer(bias_, (cout,), "float32")
        residual = match_buffer(residual_, (n, cout), residual_dtype or "float32")
        parent = match_buffer(parent_, (n,), "int32")
        table = T.meta_var(match_table(neighbours_, order_, tiles_))
        status = T.meta_var(match_status(status_))
        out = match_buffer(out_, (n, cout), dtype)
        own_residual = T.meta_var(residual if has_residual else None)
        epilogue = T.meta_var(Epilogue(out, spec.activation, bias, own_residual, in_vectors=cout % vector == 0))
        fit = T.meta_var(Fit(map_rows, n, n, T.int64(taps)))
        check_entries(status, parent, n, -1, m, RAISE_PARENT, lambda i: (i, parent[i], m))
        sum_slots(table, fit, status, epilogue, adding(y, parent, m))

    return reporting(kernel if has_residual else drop_parameters(kernel, "residual"))
