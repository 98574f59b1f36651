"""3D Gaussians: what the features of the Gaussian decoder mean, and where a pose puts them. `splat.files` has their files.

A Gaussian is kept as in a .ply file: its scale as a logarithm and its opacity as a logit, so that writing and reading loses
nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from sam3d_tvm.checks import check_choice, check_size
from sam3d_tvm.frames import CAMERA, OBJECT, Frame, rotation
from sam3d_tvm.pose import Pose, matrix_to_quaternion, quaternion_to_matrix
from sam3d_tvm.splat.cameras import as_floats, check_positive

WIDTHS = {"_xyz": 3, "_features_dc": 3, "_scaling": 3, "_rotation": 4, "_opacity": 1}  # of a Gaussian, in the order of features
LR = {"_xyz": 1.0, "_features_dc": 1.0, "_opacity": 1.0, "_scaling": 1.0, "_rotation": 0.1}
UPSTREAM_NAMES = {"kernel_size_2d": "2d_filter_kernel_size", "kernel_size_3d": "3d_filter_kernel_size"}  # no names in Python

COLUMNS = (
    *("x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", "opacity"),
    *("scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"),
)
SHAPES = {"xyz": (3,), "features_dc": (3,), "opacity_logit": (), "log_scaling": (3,), "quaternion": (4,)}  # of a Gaussian
CONSTANT_HARMONIC = 0.5 / np.sqrt(np.pi)  # the spherical harmonic of degree 0
LARGEST_LOG_SCALE = 40.0  # its covariance is finite in float32
OUTLIER_PERCENT = 1  # of the Gaussians on either side, which may lie far out without being part of the object


@dataclass(frozen=True)
class Representation:
    """How features become Gaussians, upstream's `representation_config`. Defaults are those of SAM-3D-Objects.

    num_gaussians: those of a voxel. voxel_size: the range of a Gaussian around the centre of its voxel, in voxels. lr: factors
    of the raw features by name. perturb_offset: whether the Gaussians of a voxel start spread out, see `offset_perturbation`.
    kernel_size_2d, kernel_size_3d: widths of smoothing filters, in pixels (nothing here reads it) and in the object's units.
    scaling_bias, opacity_bias: scale and opacity that a feature of 0 means.

    Raises ValueError for values outside of their range, and for an activation of scales other than "softplus".
    """

    num_gaussians: int
    voxel_size: float = 1.5
    lr: Mapping[str, float] = field(default_factory=lambda: dict(LR), hash=False)
    perturb_offset: bool = True
    kernel_size_2d: float = 0.1
    kernel_size_3d: float = 0.0009
    scaling_bias: float = 0.004
    opacity_bias: float = 0.1
    scaling_activation: str = "softplus"

    def __post_init__(self):
        check_size("num_gaussians", self.num_gaussians, 1)
        for name in ("voxel_size", "kernel_size_2d", "kernel_size_3d", "scaling_bias", "opacity_bias"):
            check_positive(name, getattr(self, name))
        if self.opacity_bias >= 1:
            raise ValueError(f"opacity_bias: expected a number below 1, given {self.opacity_bias!r}")
        check_choice("perturb_offset", self.perturb_offset, (True, False))
        if self.perturb_offset and self.voxel_size <= 1:
            raise ValueError(f"voxel_size: expected a number above 1 to perturb offsets, given {self.voxel_size!r}")
        check_choice("scaling_activation", self.scaling_activation, ("softplus",))
        if not isinstance(self.lr, Mapping) or set(self.lr) != set(WIDTHS):
            raise ValueError(f"lr: expected factors of {', '.join(WIDTHS)}, given {self.lr!r}")
        for name, factor in self.lr.items():
            check_positive(f"lr[{name!r}]", factor)

    @classmethod
    def from_dict(cls, values: Mapping) -> "Representation":
        """From upstream's names and values; ValueError for a name that is unknown or missing, or a value that does not fit."""
        known = {UPSTREAM_NAMES.get(field.name, field.name): field.name for field in fields(cls)}
        if extra := sorted(set(values) - set(known)):
            raise ValueError(f"representation_config: expected names among {', '.join(known)}, given {', '.join(extra)} too")
        if missing := [name for name in known if name not in values]:
            raise ValueError(f"representation_config: {', '.join(missing)} missing")
        return cls(**{known[name]: value for name, value in values.items()})

    @property
    def layout(self) -> dict[str, slice]:
        """Which features of a voxel are which attribute; within, those of one Gaussian after the other."""
        layout, start = {}, 0
        for name, width in WIDTHS.items():
            layout[name] = slice(start, start := start + width * self.num_gaussians)
        return layout

    @property
    def channels(self) -> int:
        """Features of a voxel."""
        return sum(WIDTHS.values()) * self.num_gaussians


def offset_perturbation(representation: Representation) -> np.ndarray:
    """Where the Gaussians of a voxel start, before tanh: float32 [num_gaussians, 3]. A checkpoint has it as a buffer.

    Point i of n of the Hammersley set (i/n, radical inverses of i in base 2 and 3), from 0..1 to the range in which tanh times
    half of voxel_size spreads it over the voxel: atanh((2 point - 1) / voxel_size). Zeros where offsets are not perturbed.
    """
    count = representation.num_gaussians
    if not representation.perturb_offset:
        return np.zeros((count, 3), np.float32)
    points = np.stack([np.arange(count) / count, _radical_inverse(count, 2), _radical_inverse(count, 3)], -1)
    return np.arctanh((2 * points - 1) / representation.voxel_size).astype(np.float32)


def raw_attributes(
    coords: np.ndarray,
    feats: np.ndarray,
    resolution: int,
    representation: Representation,
    offset_perturbation: np.ndarray,
) -> dict[str, np.ndarray]:
    """What the features of voxels say, by upstream's names: float32 _xyz [M, 3], _features_dc [M, 1, 3], _scaling [M, 3],
    _rotation [M, 4] and _opacity [M, 1], where M is N * num_gaussians and those of one voxel are consecutive.

    coords int32 [N, 4] of one batch element, within the resolution; feats floats [N, channels]; offset_perturbation floats
    [num_gaussians, 3]. All are features times lr but for _xyz, in 0..1 across the grid:

        _xyz = (coord + 0.5) / resolution + tanh(feature lr + perturbation) voxel_size / (2 resolution)

    Raises ValueError for other shapes, dtypes and values.
    """
    check_size("resolution", resolution, 1)
    count = representation.num_gaussians
    _check_coords(coords, resolution)
    feats = as_floats("feats", feats, (len(coords), representation.channels))
    perturbation = as_floats("offset_perturbation", offset_perturbation, (count, 3))
    raw = {
        name: representation.lr[name] * feats[:, part].reshape(len(coords) * count, WIDTHS[name])
        for name, part in representation.layout.items()
    }
    offsets = np.tanh(raw["_xyz"].reshape(-1, count, 3) + perturbation) * (representation.voxel_size / (2 * resolution))
    centres = (coords[:, None, 1:] + 0.5) / resolution  # [N, 1, 3]
    raw["_xyz"] = (centres + offsets).reshape(-1, 3)
    raw["_features_dc"] = raw["_features_dc"][:, None]
    return {name: array.astype(np.float32) for name, array in raw.items()}


@dataclass(frozen=True, eq=False)
class Gaussians:
    """N Gaussians, float32 arrays: xyz [N, 3], their centres; features_dc [N, 3], the coefficient of the constant spherical
    harmonic for each colour; opacity_logit [N]; log_scaling [N, 3], of the standard deviation along each axis; quaternion
    [N, 4], (w, x, y, z) of any length, which turns the axes into the world.

    frame: what the axes of xyz are, for who looks at them. objects: int32 [N], the number in its scene of the object that each
    belongs to, or None where there is no scene.

    Raises ValueError for other shapes, values that are not finite, log scales above 40, and quaternions of length 0.
    """

    xyz: np.ndarray
    features_dc: np.ndarray
    opacity_logit: np.ndarray
    log_scaling: np.ndarray
    quaternion: np.ndarray
    frame: Frame = OBJECT
    objects: np.ndarray | None = None

    def __post_init__(self):
        count = None
        for name, rest in SHAPES.items():
            array = as_floats(name, getattr(self, name), (count, *rest), np.float32)
            object.__setattr__(self, name, array)
            count = len(array)
        if (largest := self.log_scaling.max(initial=0)) > LARGEST_LOG_SCALE:
            raise ValueError(f"log_scaling: expected values up to {LARGEST_LOG_SCALE:g}, given {largest:g}")
        if not (turns := self.quaternion.any(1)).all():
            raise ValueError(f"quaternion: expected lengths above 0, given {self.quaternion[turns.argmin()].tolist()}")
        if not isinstance(self.frame, Frame):
            raise ValueError(f"frame: expected one of sam3d_tvm.frames, given {self.frame!r}")
        if self.objects is not None:
            objects = np.asarray(self.objects)
            if objects.dtype.kind not in "iu" or objects.shape != (count,):
                raise ValueError(f"objects: expected integers [{count}], given {objects.dtype} {list(objects.shape)}")
            object.__setattr__(self, "objects", objects.astype(np.int32))

    @classmethod
    def from_features(
        cls,
        coords: np.ndarray,
        feats: np.ndarray,
        resolution: int,
        representation: Representation,
        offset_perturbation: np.ndarray,
    ) -> "Gaussians":
        """The Gaussians that the features of voxels say; arguments and errors as `raw_attributes`.

        The object fills -0.5..0.5. With the raw attributes, and b and k for scaling_bias and kernel_size_3d:

            xyz = _xyz - 0.5,    opacity = sigmoid(_opacity + logit(opacity_bias)),    quaternion = _rotation + (1, 0, 0, 0)
            scaling = sqrt(softplus(_scaling + softplus_inverse(b))^2 + k^2)
        """
        raw = raw_attributes(coords, feats, resolution, representation, offset_perturbation)
        scaling = np.logaddexp(0, raw["_scaling"] + np.log(np.expm1(representation.scaling_bias)))
        return cls(
            xyz=raw["_xyz"] - np.float32(0.5),
            features_dc=raw["_features_dc"][:, 0],
            opacity_logit=raw["_opacity"][:, 0] + np.log(representation.opacity_bias / (1 - representation.opacity_bias)),
            log_scaling=np.log(np.hypot(scaling, representation.kernel_size_3d)),
            quaternion=raw["_rotation"] + np.float32([1, 0, 0, 0]),
        )

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def scaling(self) -> np.ndarray:
        """Standard deviations along the axes of the Gaussian, float32 [N, 3]."""
        return np.exp(self.log_scaling)

    @property
    def opacity(self) -> np.ndarray:
        """At the centre, float32 [N] in 0..1."""
        return np.exp(-np.logaddexp(0, -self.opacity_logit))

    @property
    def rotation(self) -> np.ndarray:
        """Unit quaternions (w, x, y, z), float32 [N, 4]."""
        wide = self.quaternion.astype(np.float64)  # squares of the smallest float32 would be 0
        return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float32)

    @property
    def covariance(self) -> np.ndarray:
        """The upper triangle by rows, (xx, xy, xz, yy, yz, zz): float32 [N, 6]."""
        axes = quaternion_to_matrix(self.rotation) * self.scaling[:, None]  # [N, 3, 3], its columns
        row, column = np.triu_indices(3)
        return (axes[:, row] * axes[:, column]).sum(-1)

    @property
    def colors(self) -> np.ndarray:
        """Red, green and blue, float32 [N, 3] in 0..1."""
        return np.clip(np.float32(0.5) + np.float32(CONSTANT_HARMONIC) * self.features_dc, 0, 1)

    @property
    def bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner of the centres, each float64 [3]; 0 without Gaussians.

        Stray Gaussians do not count: those outside of a box three times as large, along each axis, as that of the central 98%.
        """
        if len(self) == 0:
            return np.zeros(3), np.zeros(3)
        xyz = self.xyz.astype(np.float64)
        low, high = np.percentile(xyz, (OUTLIER_PERCENT, 100 - OUTLIER_PERCENT), axis=0)
        return np.maximum(xyz.min(0), 2 * low - high), np.minimum(xyz.max(0), 2 * high - low)

    def columns(self) -> np.ndarray:
        """The rows of a file, float32 [N, 17] in the order of `COLUMNS`; normals are 0."""
        normals = np.zeros_like(self.xyz)
        opacity = self.opacity_logit[:, None]
        return np.concatenate([self.xyz, normals, self.features_dc, opacity, self.log_scaling, self.quaternion], 1)

    def transformed(self, pose: Pose) -> "Gaussians":
        """The Gaussians, which are in `frames.OBJECT`, where `pose`, of one object, puts them in `frames.CAMERA`.

        ValueError for another number of objects or another frame, and for a scale that differs between axes, as Gaussians
        turned before would no longer be of this kind."""
        if not isinstance(pose, Pose) or len(pose.scale) != 1:
            given = f"one of {len(pose.scale)}" if isinstance(pose, Pose) else type(pose).__name__
            raise ValueError(f"pose: expected the Pose of one object, given {given}")
        if (pose.scale != pose.scale[0, 0]).any():
            raise ValueError(f"pose: expected one scale for all axes, given {pose.scale[0].tolist()}")
        if self.frame != OBJECT:
            raise ValueError(f"pose: expected Gaussians in the frame {OBJECT.name!r}, given some in {self.frame.name!r}")
        # Points as rows are turned by the inverse of the quaternion.
        moved = self._moved(pose.rotation_matrix[0], pose.rotation[0] * np.float32([1, -1, -1, -1]), pose.scale[0, 0])
        return replace(moved, xyz=moved.xyz + pose.translation, frame=CAMERA)

    def in_frame(self, frame: Frame) -> "Gaussians":
        """The same Gaussians with the axes of `frame`: what is right, up and away stays so, and is called otherwise."""
        if frame.axes.tolist() == self.frame.axes.tolist():
            return replace(self, frame=frame)
        turn = rotation(self.frame, frame)  # of columns
        moved = self._moved(turn.T.astype(np.float32), matrix_to_quaternion(turn).astype(np.float32), np.float32(1))
        return replace(moved, frame=frame)

    def _moved(self, matrix: np.ndarray, quaternion: np.ndarray, scale: np.float32) -> "Gaussians":
        """Scaled, and turned by a `matrix` for points as rows, and a `quaternion` that says the same for columns."""
        return replace(
            self,
            xyz=scale * self.xyz @ matrix,
            log_scaling=self.log_scaling + np.log(scale),
            quaternion=_quaternion_product(quaternion, self.quaternion),
        )

    @classmethod
    def merged(cls, parts: Sequence["Gaussians"]) -> "Gaussians":
        """All Gaussians of `parts`, in their order, `objects` being the numbers of their parts, from 1; none are legal.

        ValueError for parts in several frames."""
        frames = {part.frame.name: part.frame for part in parts} or {OBJECT.name: OBJECT}
        if len(frames) > 1:
            raise ValueError(f"parts: expected Gaussians in one frame, given some in {', '.join(sorted(frames))}")
        empty = cls(**{name: np.zeros((0, *rest)) for name, rest in SHAPES.items()})
        return cls(
            **{name: np.concatenate([getattr(part, name) for part in (empty, *parts)]) for name in SHAPES},
            frame=next(iter(frames.values())),
            objects=np.repeat(np.arange(1, len(parts) + 1), np.array([len(part) for part in parts], int)),
        )


def _check_coords(coords: np.ndarray, resolution: int) -> None:
    if not isinstance(coords, np.ndarray) or coords.dtype != np.int32 or coords.ndim != 2 or coords.shape[1] != 4:
        given = f"{coords.dtype} {list(coords.shape)}" if isinstance(coords, np.ndarray) else type(coords).__name__
        raise ValueError(f"coords: expected int32 [N, 4], given {given}")
    if (coords[:, 0] != coords[:1, 0]).any():
        raise ValueError(f"coords: expected rows of one batch element, given {len(np.unique(coords[:, 0]))} of them")
    inside = ((coords[:, 1:] >= 0) & (coords[:, 1:] < resolution)).all(1)
    if not inside.all():
        row = int(inside.argmin())
        raise ValueError(f"coords: expected x, y and z in 0..{resolution - 1}, given {coords[row].tolist()} in row {row}")


def _radical_inverse(count: int, base: int) -> np.ndarray:
    """0, 1, ... count - 1 with their digits in `base` mirrored at the point: float64 [count] in 0..1."""
    rest, weight, inverse = np.arange(count), 1.0, np.zeros(count)
    while rest.any():
        weight /= base
        inverse += weight * (rest % base)
        rest //= base
    return inverse


def _quaternion_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Quaternions (w, x, y, z) that turn by `b` first and then by `a`, [..., 4]."""
    (aw, ax, ay, az), (bw, bx, by, bz) = np.moveaxis(a, -1, 0), np.moveaxis(b, -1, 0)
    w = aw * bw - ax * bx - ay * by - az * bz
    x = aw * bx + ax * bw + ay * bz - az * by
    y = aw * by - ax * bz + ay * bw + az * bx
    z = aw * bz + ax * by - ay * bx + az * bw
    return np.stack([w, x, y, z], -1)
