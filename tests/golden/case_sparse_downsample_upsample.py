"""`sparse_downsample_upsample`: downsampling whose mean divides by count + 1, upsampling, subdivision."""

import re

import numpy as np

from sparse_ops.eager import functional as F
from tests.golden.case import Case, Tensors

FIRST = re.compile(r"out\.subdivide_twice_coords_first(\d+)")


def run(tensors: Tensors, config: dict) -> Tensors:
    x, coords, factor = tensors["in.x"], tensors["in.coords"], config["factor"]
    down_coords, inverse = F.downsample(coords, factor)
    down = F.segment_pool(x, inverse, len(down_coords), "mean", count_bias=1)
    twice_coords, twice = F.downsample(down_coords, factor)
    children, families = F.subdivide(coords), np.repeat(np.arange(len(coords), dtype="int32"), 8)
    (some,) = {int(match[1]) for name in tensors if (match := FIRST.fullmatch(name))} or {0}
    ones = np.ones((len(coords), 1), "float32")
    return {
        "mid.down_idx": inverse.astype("int64"),
        "mid.down_count": F.segment_pool(ones, inverse, len(down_coords), "sum")[:, 0].astype("int64"),
        "out.down": down,
        "out.down_coords": down_coords,
        "out.down_mod": 2 * down + 1,
        "out.up": F.gather_rows(2 * down + 1, inverse),
        "out.up_coords": coords,
        "out.down2": F.segment_pool(down, twice, len(twice_coords), "mean", count_bias=1),
        "out.down2_coords": twice_coords,
        "out.subdivide": F.gather_rows(x, families),
        "out.subdivide_coords": children,
        f"out.subdivide_twice_coords_first{some}": F.subdivide(children)[:some],
    }


def depth(name: str, tensors: Tensors, config: dict) -> float:
    """Additions of one mean, or of two after each other."""
    return config["factor"] ** 3 * (2 if "down2" in name else 1)


CASE = Case(run, depth)
