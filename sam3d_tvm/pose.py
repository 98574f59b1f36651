"""Pose decoding: from the pose tokens of the first stage to the rotation, translation and scale of an object in its scene.

A pose acts on points as rows of three, as in PyTorch3D: points @ diag(scale) @ R + translation, where R is the rotation matrix
of the quaternion. Seen as columns, points are therefore turned by the transpose of R.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sam3d_tvm.checks import check_finite
from sam3d_tvm.frames import OBJECT, Frame, matrix
from sparse_ops.eager.arrays import as_kind, as_tensor

# What the first stage was trained to give are 6D rotations with this mean and standard deviation taken out.
ROTATION_6D_MEAN = np.reshape(
    [
        [-0.06366084516048431, 0.008438224904239178, 0.00017084786668419838],
        [0.0007126610726118088, -0.003091672668233514, 0.5166093707084656],
    ],
    6,
)
ROTATION_6D_STD = np.reshape(
    [
        [0.6656972169876099, 0.6787012219429016, 0.3034501075744629],
        [0.4394504427909851, 0.3981797397136688, 0.6176286935806274],
    ],
    6,
)
LEAST_LENGTH = 1e-6  # of a vector of about 1 that was rounded to float32: what is shorter points anywhere
UNIT = 1e-4  # how far the length of a unit quaternion may be from 1

ROTATION, TRANSLATION, SCALE = "6drotation_normalized", "translation", "scale"  # as upstream names the tokens


@dataclass(frozen=True, eq=False)
class Pose:
    """Where objects are: rotation float32 [B, 4], unit quaternions (w, x, y, z) with w >= 0; translation float32 [B, 3], in the
    units of the scene; scale float32 [B, 3], scene units per unit of the object along each axis, above 0.

    Raises ValueError for other shapes, dtypes or values.
    """

    rotation: np.ndarray
    translation: np.ndarray
    scale: np.ndarray

    def __post_init__(self):
        batch = None
        for name, width in (("rotation", 4), ("translation", 3), ("scale", 3)):
            array = _finite(name, getattr(self, name), (batch, width))
            object.__setattr__(self, name, array)
            batch = len(array)
        unit = np.abs(np.linalg.norm(self.rotation, axis=1) - 1) <= UNIT
        _check_rows("rotation", "unit quaternions with w of at least 0", unit & (self.rotation[:, 0] >= 0), self.rotation)
        _check_rows("scale", "numbers above 0", (self.scale > 0).all(1), self.scale)

    @property
    def rotation_matrix(self) -> np.ndarray:
        """float32 [B, 3, 3]: points as rows are multiplied by it from the right."""
        return quaternion_to_matrix(self.rotation)

    def matrix(self) -> np.ndarray:
        """float32 [B, 4, 4]: rows (point, 1) are multiplied by it from the right."""
        found = np.zeros((len(self.scale), 4, 4), np.float32)
        found[:, :3, :3] = self.scale[:, :, None] * self.rotation_matrix
        found[:, 3, :3] = self.translation
        found[:, 3, 3] = 1
        return found

    def into_camera(self, frame: Frame = OBJECT) -> np.ndarray:
        """float64 [B, 4, 4]: takes columns (x, y, z, 1) of objects, whose axes are those of `frame`, into `frames.CAMERA`."""
        return self.matrix().astype(np.float64).transpose(0, 2, 1) @ matrix(frame, OBJECT)

    def scaled(self, factor) -> "Pose":
        """The pose with its scale multiplied by `factor`, a number above 0 or one for each element [B]: what the coarser grid
        of `voxels.downsample` takes. ValueError for anything else."""
        factors = np.asarray(factor)
        if factors.dtype.kind not in "iuf" or factors.shape not in ((), (len(self.scale),)):
            raise ValueError(f"factor: expected a number or numbers [{len(self.scale)}], given {factor!r}")
        if not (np.isfinite(factors) & (factors > 0)).all():
            raise ValueError(f"factor: expected finite numbers above 0, given {factor!r}")
        return replace(self, scale=(self.scale * factors[..., None]).astype(np.float32))


def decode_pose(latents: Mapping, scene_scale=None, scene_shift=None) -> Pose:
    """The pose that tokens of the first stage say, in upstream's scale and shift invariant convention.

    latents: "6drotation_normalized" [B, 1, 6], "translation" [B, 1, 3] and "scale" [B, 1, 3], float32, the latter a logarithm;
    other entries, such as "translation_scale", have no part in this convention. Scale and shift of the scene, both [B, 3]
    float32, are those by which its point map was normalised; default 1 and 0. With them

        scale = mean over axes(exp(scale)) * scene_scale,    translation = translation * scene_scale + scene_shift

    Raises ValueError for a token that is missing, other shapes, dtypes or values, a scene scale that differs between axes,
    which no rotation and scale could follow, and a rotation that is degenerate, see `rotation_6d_to_matrix`.
    """
    if not isinstance(latents, Mapping):
        raise ValueError(f"latents: expected tokens by name, given {type(latents).__name__}")
    if missing := [name for name in (ROTATION, TRANSLATION, SCALE) if name not in latents]:
        raise ValueError(f"latents: expected {ROTATION}, {TRANSLATION} and {SCALE}, given no {', '.join(missing)}")
    rotation = _finite(ROTATION, latents[ROTATION], (None, 1, 6))[:, 0]
    batch = len(rotation)
    translation, scale = (_finite(name, latents[name], (batch, 1, 3))[:, 0].astype(np.float64) for name in (TRANSLATION, SCALE))
    scene_scale = _finite("scene_scale", np.ones((batch, 3), np.float32) if scene_scale is None else scene_scale, (batch, 3))
    scene_shift = _finite("scene_shift", np.zeros((batch, 3), np.float32) if scene_shift is None else scene_shift, (batch, 3))
    uniform = (scene_scale > 0).all(1) & (scene_scale == scene_scale[:, :1]).all(1)
    _check_rows("scene_scale", "one number above 0 for all axes", uniform, scene_scale)
    turned = rotation_6d_to_matrix(denormalise_rotation(rotation))
    with np.errstate(over="ignore"):  # `Pose` refuses what is infinite
        scale = np.exp(scale).mean(1, keepdims=True) * scene_scale
        fields = (matrix_to_quaternion(turned), translation * scene_scale + scene_shift, scale)
        return Pose(*(field.astype(np.float32) for field in fields))


def denormalise_rotation(rotation: np.ndarray) -> np.ndarray:
    """What the model gives, [..., 6], as 6D rotations: float64 [..., 6]."""
    return rotation.astype(np.float64) * ROTATION_6D_STD + ROTATION_6D_MEAN


def rotation_6d_to_matrix(rotation: np.ndarray) -> np.ndarray:
    """6D rotations [..., 6], two vectors of three, as matrices float64 [..., 3, 3] whose columns are orthonormal.

    Gram-Schmidt: the first column is along the first vector, the second in the plane of both, the third is their cross product
    (Zhou et al., On the Continuity of Rotation Representations in Neural Networks, 2019). Raises ValueError when a vector is
    zero or both are parallel, as they then say no rotation.
    """
    first, second = rotation[..., :3].astype(np.float64), rotation[..., 3:].astype(np.float64)
    length = np.linalg.norm(first, axis=-1, keepdims=True)
    x = first / np.maximum(length, LEAST_LENGTH)
    rest = second - (x * second).sum(-1, keepdims=True) * x
    height = np.linalg.norm(rest, axis=-1, keepdims=True)
    least = LEAST_LENGTH * np.maximum(np.linalg.norm(second, axis=-1, keepdims=True), 1)
    regular = (length > LEAST_LENGTH) & (height > least)
    _check_rows("rotation", "two vectors that are neither zero nor parallel", regular.reshape(-1), rotation.reshape(-1, 6))
    y = rest / height
    return np.stack([x, y, np.cross(x, y)], axis=-1)


def matrix_to_quaternion(matrix: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] as unit quaternions (w, x, y, z) with w >= 0, float64 [..., 4]."""
    m = matrix.astype(np.float64)
    w = 1 + m[..., 0, 0] + m[..., 1, 1] + m[..., 2, 2]
    x = 1 + m[..., 0, 0] - m[..., 1, 1] - m[..., 2, 2]
    y = 1 - m[..., 0, 0] + m[..., 1, 1] - m[..., 2, 2]
    z = 1 - m[..., 0, 0] - m[..., 1, 1] + m[..., 2, 2]
    wx, wy, wz = (m[..., i, j] - m[..., j, i] for i, j in ((2, 1), (0, 2), (1, 0)))
    xy, xz, yz = (m[..., i, j] + m[..., j, i] for i, j in ((1, 0), (0, 2), (2, 1)))
    # 4 q q^T, whose rows are all q but for a factor: the one with the largest diagonal, which is at least 1, is divided by it.
    products = np.stack([w, wx, wy, wz, wx, x, xy, xz, wy, xy, y, yz, wz, xz, yz, z], -1).reshape(*w.shape, 4, 4)
    largest = np.stack([w, x, y, z], -1).argmax(-1)
    row = np.take_along_axis(products, largest[..., None, None], -2)[..., 0, :]
    quaternion = row / np.linalg.norm(row, axis=-1, keepdims=True)
    return np.where(quaternion[..., :1] < 0, -quaternion, quaternion)


def quaternion_to_matrix(quaternion: np.ndarray) -> np.ndarray:
    """Unit quaternions (w, x, y, z) [..., 4] as rotation matrices [..., 3, 3] of their dtype."""
    w, x, y, z = np.moveaxis(quaternion, -1, 0)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def _finite(name: str, array, shape: tuple) -> np.ndarray:
    """`array` as a numpy array float32 of `shape`, in which None is any size. ValueError unless it is that, and finite."""
    found = as_kind(as_tensor(array, name, ("float32",), shape), "numpy")
    check_finite(name, found)
    return found


def _check_rows(name: str, expected: str, good: np.ndarray, rows: np.ndarray) -> None:
    """ValueError that shows the first of `rows` which is not `good`."""
    if not good.all():
        row = int(good.argmin())
        raise ValueError(f"{name}: expected {expected}, given {rows[row].tolist()} for element {row}")
