"""`pointmap_pipeline`: from the depth model's points to tokens of the condition embedder, for several photos.

Each entry of `config["cases"]` is one photo; its tensors are `in.<name>.*`, `mid.<name>.*` and `out.<name>.*`. `in.<name>.rgba`
[H, W, 4] has the mask as alpha channel; `moge_points` [H, W, 3] are what the depth model makes of it, infinite where it sees
nothing, or `user_pointmap` [h, w, 3] is a map that somebody gave, in the axes of the pipeline.

`pointmap`, `normalised` [3, H, W]: at the photo's pixels; `cropped_pointmap`: before it is resized; `embedder_xyz_<input>`,
`embedder_valid_<input>`, `tokens_<input>`: of a point patch embedding, whose weights are `state.embedder.*`.
"""

import warnings
from functools import partial

import numpy as np
import torch

from sam3d_tvm.models.condition_embedder.point_patch_embed_torch import PointPatchEmbed
from sam3d_tvm.models.moge.focal import half_sides, recover_focal_shift
from sam3d_tvm.models.moge.infer import DepthMap
from sam3d_tvm.notices import Notice
from sam3d_tvm.photo.preprocess import mask_box, preprocess
from sam3d_tvm.pipeline import _over_pixels, clipped
from sparse_ops.deploy.from_torch import port_component
from tests.golden import case_preprocess, depths
from tests.golden.case import Case, Tensors
from tests.golden.case_dino import module_of
from tests.golden.case_point_patch_embed import config_of, depths_of

INPUTS = ("pointmap", "rgb_pointmap")
PREFIX = "state.embedder."


def run(tensors: Tensors, config: dict) -> Tensors:
    weights = {f"state.{name.removeprefix(PREFIX)}": value for name, value in tensors.items() if name.startswith(PREFIX)}
    module = module_of(partial(PointPatchEmbed, config_of(config["embed"])), weights)
    xyz = torch.zeros(1, 3, config["size"], config["size"])
    embedder = port_component(module, {"stages": (xyz,), "embed": (xyz,)}, "point_patch_embed")
    out = {}
    for name, case in config["cases"].items():
        found = _run_one(name, case, tensors, config, embedder)
        out |= {key.replace(".", f".{name}.", 1): value for key, value in found.items()}
    return out


def _run_one(name: str, case: dict, tensors: Tensors, config: dict, embedder) -> Tensors:
    rgba, pointmap = tensors[f"in.{name}.rgba"], pointmap_of(name, tensors)
    if case["clip_pointmap_beyond_scale"] is not None:
        pointmap = clipped(pointmap, rgba[..., 3], case["clip_pointmap_beyond_scale"])
    factor, padding = config["box_size_factor"], config["padding_factor"]

    def at(size: int, padding: float = 0.0):
        with warnings.catch_warnings(action="ignore", category=Notice):  # of the photo without a point in its mask
            return preprocess(rgba, pointmap, size, factor, padding)

    found = at(config["size"], padding)
    out = {f"out.{key}": value for key, value in found.structure.items()}
    for key in INPUTS:
        out |= {f"out.{key}_scale": found.scale, f"out.{key}_shift": found.shift}
        stages = embedder["stages"](found.structure[key])
        xyz = stages["resized_xyz"]
        out |= {f"mid.embedder_xyz_{key}": xyz, f"mid.embedder_valid_{key}": np.isfinite(xyz).all(-1).astype(np.uint8)}
        out[f"out.tokens_{key}"] = embedder["embed"](found.structure[key])

    left, top, right, bottom = box = mask_box(rgba[..., 3], factor)
    height, width = rgba.shape[:2]
    side = max(height, width)  # at which the whole photo is not interpolated, as the crop is not at its own
    rows, columns = (side - height) // 2, (side - width) // 2
    whole = at(side).structure["rgb_pointmap"][0][:, rows : rows + height, columns : columns + width]
    cropped = at(max(right - left, bottom - top)).structure["pointmap"][0]
    out |= {"mid.bbox_x1y1x2y2": np.array(box), "mid.pointmap": pointmap, "mid.normalised": whole}
    if f"in.{name}.user_pointmap" in tensors:
        out["out.intrinsics"] = intrinsics_of_public_code(pointmap)
    return out | {"mid.cropped_pointmap": cropped}


def intrinsics_of_public_code(pointmap: np.ndarray) -> np.ndarray:
    """float32 [3, 3], in which a fitted shift stands for the focal length: nothing that is made of a photo looks at them."""
    points = np.ascontiguousarray(pointmap.transpose(1, 2, 0))  # [H, W, 3]
    _, shift = recover_focal_shift(points, np.isfinite(points).all(-1))
    across, along = half_sides(*points.shape[:2])
    return np.array([[shift / across / 2, 0, 0.5], [0, shift / along / 2, 0.5], [0, 0, 1]], np.float32)


def pointmap_of(name: str, tensors: Tensors) -> np.ndarray:
    """A point for every pixel of a photo, float32 [3, H, W] in the pipeline's axes."""
    given = tensors.get(f"in.{name}.user_pointmap")
    if given is not None:
        return _over_pixels(np.ascontiguousarray(given.transpose(2, 0, 1)), tensors[f"in.{name}.rgba"].shape[:2])
    points = tensors[f"in.{name}.moge_points"]
    depth = points[..., 2]
    return DepthMap(points, depth, np.isfinite(depth), depth, np.eye(3, dtype=np.float32)).pointmap


def depth(name: str, tensors: Tensors, config: dict) -> float:
    _, _, what = name.split(".")
    if what.startswith("tokens"):
        return case_preprocess.NORMALISED + depths_of(config_of(config["embed"]))["tokens"]
    if what in case_preprocess.COLOURS:
        side = max(config["cases"][name.split(".")[1]]["hw"])
        if what == "image":
            left, top, right, bottom = tensors[f"mid.{name.split('.')[1]}.bbox_x1y1x2y2"]
            side = int(max(right - left, bottom - top))
        return case_preprocess.BYTE + depths.resize((side, side), (config["size"],) * 2, antialias=True)
    return case_preprocess.BYTE if "mask" in what else case_preprocess.NORMALISED


def scale(name: str, tensors: Tensors, config: dict) -> float | None:
    """Of points that are subtracted, then divided, the size of those; tokens are of the size of their points' own."""
    _, case, what = name.split(".")
    if "pointmap" not in what or what.startswith("tokens"):
        return None if what.startswith("tokens") else 1.0
    points = tensors[f"mid.{case}.pointmap"]
    largest = float(np.abs(points[np.isfinite(points)]).max())
    if what.endswith(("scale", "shift")) or name == f"mid.{case}.pointmap":
        return largest
    return largest / float(tensors[f"out.{case}.pointmap_scale"].min())


CASE = Case(run, depth, scale)
