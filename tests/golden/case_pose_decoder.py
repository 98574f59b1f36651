"""`pose_decoder`: poses from tokens, in cases c0, c1, ... of which each may have the scale and shift of a scene."""

import numpy as np

from sam3d_tvm.pose import (
    ROTATION,
    ROTATION_6D_MEAN,
    ROTATION_6D_STD,
    TRANSLATION,
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
    for name, ours in (("rotation_6d_mean", ROTATION_6D_MEAN), ("rotation_6d_std", ROTATION_6D_STD)):
        if not np.array_equal(theirs := config.get(name, ours), ours):
            raise ValueError(f"config.{name}: expected {ours.tolist()}, given {theirs}")
    found = {}
    for case in (f"c{i}" for i in range(config["cases"])):
        given = inputs(case, tensors)
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


def inputs(case: str, tensors: Tensors) -> Tensors:
    """The tokens of one case, [B, 1, C], and the scene's scale and shift [B, 3], of which a file may have one for all."""
    given = {name.removeprefix(f"in.{case}."): value for name, value in tensors.items() if name.startswith(f"in.{case}.")}
    batch = len(given[ROTATION])
    scene = {name: np.broadcast_to(given[name], (batch, 3)) for name in ("scene_scale", "scene_shift") if name in given}
    return given | {name: np.ascontiguousarray(value) for name, value in scene.items()}


def _same_side(quaternion: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The quaternions [..., 4], of which both signs are the same rotation, with the sign that is closer to another one's."""
    return np.where((quaternion * other).sum(-1, keepdims=True) < 0, -quaternion, quaternion)


def scale(name: str, tensors: Tensors, config: dict) -> float | None:
    """The size of the terms, which may cancel: those of a translation, and those of vectors before they are made unit ones."""
    _, case, what = name.split(".")
    given = inputs(case, tensors)
    if what == "translation":
        terms = given[TRANSLATION][:, 0] * given.get("scene_scale", 1), given.get("scene_shift", 0), tensors[name]
        return float(max(np.abs(term).max() for term in terms))
    if what == "scale":
        return None
    terms = float((np.abs(given[ROTATION] * ROTATION_6D_STD) + np.abs(ROTATION_6D_MEAN)).max())
    return terms if what == "rot6d" else rotation_scale(denormalise_rotation(given[ROTATION]), terms)


def rotation_scale(rotation: np.ndarray, terms: float) -> float:
    """By how much Gram-Schmidt enlarges a rounding of terms that large, for rotations [..., 6].

    The first vector turns by a rounding over its length; the second by one of its own over the length that is left of it, and
    by the turn of the first times what is taken away.
    """
    first, second = rotation[..., :3], rotation[..., 3:]
    length = np.linalg.norm(first, axis=-1)
    height = np.linalg.norm(np.cross(first, second), axis=-1) / length
    turn = terms / length
    return float(np.maximum(turn, np.hypot(terms, np.linalg.norm(second, axis=-1) * turn) / height).max())


CASE = Case(run, lambda name, tensors, config: DEPTH, scale)
