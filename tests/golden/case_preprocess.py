"""`preprocess`: both stages' inputs, `out.ss.*` and `out.slat.*` at `config.size`, and some of them at `config.full_size`.

`out.<stage><size>_stride9.*` are every ninth pixel from the fourth on, and `out.<stage><size>_mean.*` means without NaN.
"""

import numpy as np

from sam3d_tvm.photo.preprocess import mask_box, preprocess
from tests.golden.case import Case, Tensors

KEPT_IN_SINGLE = 2.0**29  # epsilons of float64 in one of float32, for means that are stored as float64


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
    full = config["full_size"]
    for stage, values in at(full)[0].items():
        images = {name: value for name, value in values.items() if value.ndim == 4}
        out |= {f"out.{stage}{full}_stride9.{name}": value[..., 4::9, 4::9] for name, value in images.items()}
        out |= {f"out.{stage}{full}_mean.{name}": np.nanmean(value, dtype=np.float64)[None] for name, value in images.items()}

    left, top, right, bottom = mask_box(rgba[..., 3], factor)
    own = at(max(right - left, bottom - top), 0.0)[0]["slat"]  # the crop at its own size is not interpolated
    box = np.array([left, top, right, bottom])
    return out | {"mid.bbox_x1y1x2y2": box, "mid.cropped_image": own["image"][0], "mid.cropped_mask": own["mask"][0]}


def scale(name: str, tensors: Tensors, config: dict) -> float:
    """The size of what is rounded."""
    kept = KEPT_IN_SINGLE if "_mean." in name else 1.0
    kind, what = name.split(".")[0], name.split(".")[-1]
    if kind == "out" and what in ("image", "rgb_image"):
        # PyTorch interpolates at float32 positions of up to this, and colours change by up to 1 from pixel to pixel.
        return kept * max(tensors["in.rgba"].shape)
    if "pointmap" in what or "normalizer" in what:
        points = tensors["in.pointmap"]
        largest = np.abs(points[np.isfinite(points)]).max()
        return kept * largest / (tensors["mid.scale_from_normalizer"][0] if what.endswith("pointmap") else 1)
    return kept


CASE = Case(run, lambda name, tensors, config: 3, scale)
"""Three roundings at most: the shift, the scale, and what is stored."""
