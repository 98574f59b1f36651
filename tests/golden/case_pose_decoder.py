"""`pose_decoder`: poses from tokens, in cases c0, c1, ... of which each may have the scale and shift of a scene."""

import numpy as np

from sam3d_tvm.pose import (
    ROTATION,
    decode_pose,
    denormalise_rotation,
    matrix_to_quaternion,
    rotation_6d_to_matrix,
)
from tests.golden.case import Case, Tensors

DEPTH = 3 + 3 + 3 + 9  # a mean, and the sums of three terms behind a matrix and behind the length of a quaternion


def run(tensors: Tensors, config: dict) -> Tensors:
    if config["convention"] != "ScaleShiftInvariant":
        raise ValueError(f"config.convention: expected 'ScaleShiftInvariant', given {config['convention']!r}")
    found = {}
    for case in (f"c{i}" for i in range(config["cases"])):
        given = {name.removeprefix(f"in.{case}."): value for name, value in tensors.items() if name.startswith(f"in.{case}.")}
        pose = decode_pose(given, given.get("scene_scale"), given.get("scene_shift"))
        found |= {f"out.{case}.{name}": getattr(pose, name) for name in ("rotation", "translation", "scale")}
        rotation = denormalise_rotation(given[ROTATION])
        matrix = rotation_6d_to_matrix(rotation)
        mids = {"rot6d": rotation, "rotation_matrix": matrix, "quaternion_wxyz": matrix_to_quaternion(matrix)}
        found |= {f"mid.{case}.{name}": value.astype(np.float32) for name, value in mids.items()}
    for name in found.keys() & tensors.keys():
        if name.endswith((".rotation", ".quaternion_wxyz")):
            found[name] = _same_side(found[name], tensors[name])
    return found


def _same_side(quaternion: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The quaternions [..., 4], of which both signs are the same rotation, with the sign that is closer to another one's."""
    return np.where((quaternion * other).sum(-1, keepdims=True) < 0, -quaternion, quaternion)


CASE = Case(run, lambda name, tensors, config: DEPTH)
