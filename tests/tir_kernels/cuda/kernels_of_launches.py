"""Kernels around what emits launches, so that tests can call it: one of prefix sums and one of sorting."""

from tvm.script import tirx as T

from tir_kernels import script
from tir_kernels.buffers import match_buffer
from tir_kernels.cuda.gpu import on_device
from tir_kernels.cuda.scan import exclusive_scan
from tir_kernels.cuda.sort import sort_pairs


def scan_kernel(values_dtype: str, sums_dtype: str):
    """(values [N], sums [N + 1])."""

    @script.prim_func(s_tir=True)
    def kernel(values_: T.handle, sums_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "scan"})
        n = T.int64()
        values = match_buffer(values_, (n,), values_dtype)
        sums = match_buffer(sums_, (n + 1,), sums_dtype)
        exclusive_scan(values, sums, n)

    return on_device(kernel)


def sort_kernel(dtype: str, bits: int, with_rows: bool):
    """(keys [N], rows int32 [N], sorted_keys, sorted_rows), the row numbers as rows unless `with_rows`."""

    @script.prim_func(s_tir=True)
    def kernel(keys_: T.handle, rows_: T.handle, sorted_keys_: T.handle, sorted_rows_: T.handle):
        T.func_attr({"tirx.noalias": True, "global_symbol": "sort"})
        n = T.int64()
        keys = match_buffer(keys_, (n,), dtype)
        rows = match_buffer(rows_, (n,), "int32")
        sorted_keys = match_buffer(sorted_keys_, (n,), dtype)
        sorted_rows = match_buffer(sorted_rows_, (n,), "int32")
        sort_pairs(keys, rows if with_rows else None, sorted_keys, sorted_rows, n, bits)

    return on_device(kernel)
