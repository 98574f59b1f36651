"""Means and variances from parts, merged in order (Chan, Golub and LeVeque 1979).

Means are kept as a center and a small difference from it, so a mean much larger than the deviations costs no accuracy.
"""

from tvm.script import tirx as T

from .script import inline


@inline
def merge_part(center, mean, square, b, g, before, part_center, part_mean, part_square, count):
    """Merge the moments of a part of `count` elements into those of the `before` elements of group g of batch element b.

    Moments are a center, the mean less the center, and the sum of squared deviations from the mean.
    """
    if before == 0:
        center[b, g] = part_center
        mean[b, g] = T.float32(0)
        square[b, g] = T.float32(0)
    share: T.let = T.Cast("float32", count) / T.Cast("float32", before + count)
    step: T.let = (part_center - center[b, g]) + part_mean - mean[b, g]
    mean[b, g] += step * share
    square[b, g] += part_square + step * step * share * T.Cast("float32", before)
