"""Where the outputs of a resized axis lie in it, as expressions: see `spec.resize_bilinear`."""

from tvm.script import tirx as T


def place(i, size, size_out, align_corners: bool):
    """float32: the place of output i of `size_out` along an axis of `size`; all int64. Rounded once, as a fused product and sum
    is: float64 holds the product of two float32 as it is."""
    if align_corners:
        size, size_out = size - 1, size_out - 1
    scale = T.Cast("float32", size) / T.Cast("float32", T.max(size_out, T.int64(1)))
    at, first = (T.Cast("float64", i), 0.0) if align_corners else (T.Cast("float64", i) + T.float64(0.5), 0.5)
    return T.Cast("float32", T.max(T.Cast("float64", scale) * at - T.float64(first), T.float64(0)))
