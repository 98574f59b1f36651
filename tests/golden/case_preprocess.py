"""`preprocess`: both stages' inputs, `out.ss.*` and `out.slat.*`, at `config.size`, and some of them at other sizes.

`out.<stage><size>_stride<n>.*` are every n-th pixel from n // 2 on, `out.<stage><size>_mean.*` means without NaN. A file may
have no point map.
"""

import re

import numpy as np

from sam3d_tvm.photo.preprocess import mask_box, preprocess
from tests.golden import depths
from tests.golden.case import Case, Tensors

KEPT_IN_SINGLE = 2.0**29  # epsilons of float64 in one of float32, for means that are stored as float64
AT_SIZE = re.compile(r"out\.(ss|slat)(\d+)_(mean|stride(\d+))\.(\w+)")
COLOURS = ("image", "rgb_image")
BYTE = 3.0  # as a number in 0..1: upstream divides in float64, and rounds that
# Upstream multiplies (x, y, z, 1) with the inverse of a 4 x 4 matrix: four terms, and two roundings in what is inverted. Here
# the shift is taken away, and the scale divides.
NORMALISED = 4.0 + 2 + 2


def run(tensors: Tensors, config: dict) -> Tensors:
    rgba, pointmap, factor = tensors["in.rgba"], tensors.get("in.pointmap"), config["box_size_factor"]

    def at(size, padding=config["padding_factor"]):
        found = preprocess(rgba, pointmap, size, factor, padding)
        moments = {} if pointmap is None else {"scale": found.scale, "shift": found.shift}
        named = {f"{name}_{key}": value for name in ("pointmap", "rgb_pointmap") for key, value in moments.items()}
        return {"ss": found.structure | named, "slat": found.slat}, moments

    stages, moments = at(config["size"])
    out = {f"out.{stage}.{name}": value for stage, values in stages.items() for name, value in values.items()}
    out |= {f"mid.{name}_from_normalizer": value[0] for name, value in moments.items()}
    others = [match for match in map(AT_SIZE.fullmatch, tensors) if match]
    at_size = {size: at(size)[0] for size in {int(match[2]) for match in others}}
    for match in others:
        value = at_size[int(match[2])][match[1]][match[5]]
        if match[4]:
            step = int(match[4])
            out[match[0]] = value[..., step // 2 :: step, step // 2 :: step]
        else:
            out[match[0]] = np.nanmean(value, dtype=np.float64)[None]

    left, top, right, bottom = mask_box(rgba[..., 3], factor)
    own = at(max(right - left, bottom - top), 0.0)[0]["slat"]  # the crop at its own size is not interpolated
    box = np.array([left, top, right, bottom])
    return out | {"mid.bbox_x1y1x2y2": box, "mid.cropped_image": own["image"][0], "mid.cropped_mask": own["mask"][0]}


def depth(name: str, tensors: Tensors, config: dict) -> float:
    match, what = AT_SIZE.fullmatch(name), name.split(".")[-1]
    size = int(match[2]) if match else config["size"]
    height, width = tensors["in.rgba"].shape[:2]
    if name.startswith("out.") and what in COLOURS:
        cropped = what == "image" and (name.startswith("out.slat") or "in.pointmap" in tensors)
        side = crop_side(tensors, config) if cropped else max(height, width)
        return BYTE + depths.resize((side, side), (size, size), antialias=True)
    if what == "pointmap":
        values = normalised(tensors)
        steep = [steepest(values, axis) / scale("out.ss.pointmap", tensors, config) for axis in (1, 2)]
        return NORMALISED + depths.resize(values.shape[1:], (height, width), antialias=True, steepness=steep)
    return NORMALISED if what == "rgb_pointmap" else BYTE


def crop_side(tensors: Tensors, config: dict) -> int:
    """Pixels along a side of what is cropped, with its rim."""
    left, top, right, bottom = mask_box(tensors["in.rgba"][..., 3], config["box_size_factor"])
    side = max(right - left, bottom - top)
    return side + 2 * int(side * config["padding_factor"])


def normalised(tensors: Tensors) -> np.ndarray:
    """The point map [3, h, w] before it is resized, float64, 0 where there is no point."""
    moments = (tensors[f"out.ss.pointmap_{name}"].reshape(3, 1, 1).astype(np.float64) for name in ("scale", "shift"))
    scale, shift = moments
    values = (tensors["in.pointmap"] - shift) / scale
    return np.where(np.isfinite(values).all(0), values, 0)


def steepest(values: np.ndarray, axis: int) -> float:
    """By how much values change at most from one to the next along an axis."""
    return float(np.abs(np.diff(values, axis=axis)).max(initial=0))


def scale(name: str, tensors: Tensors, config: dict) -> float:
    """The size of what is rounded: colours and masks are in 0..1, and points are subtracted, then divided."""
    kept, what = KEPT_IN_SINGLE if "_mean." in name else 1.0, name.split(".")[-1]
    if "pointmap" in what or "normalizer" in what:
        points = tensors["in.pointmap"]
        largest = np.abs(points[np.isfinite(points)]).max()
        return float(kept * largest / (tensors["out.ss.pointmap_scale"].min() if what.endswith("pointmap") else 1))
    return kept


CASE = Case(run, depth, scale)
