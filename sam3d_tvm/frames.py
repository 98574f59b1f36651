"""Frames of reference: which way the axes of every kind of data point, and the matrices between them; see docs/frames.md.

All frames are right-handed. A frame is given by three directions of its own: right, up and away of who looks at its front.
"""

from dataclasses import dataclass

import numpy as np

from sam3d_tvm.checks import check_choice


@dataclass(frozen=True)
class Frame:
    """A frame by name. `right`, `up`, `away`: unit vectors along its axes, as somebody in front of what it holds sees them.

    Raises ValueError for directions that are not those of a right-handed frame.
    """

    name: str
    right: tuple[int, int, int]
    up: tuple[int, int, int]
    away: tuple[int, int, int]

    def __post_init__(self):
        axes = self.axes
        if not np.array_equal(np.abs(axes @ axes.T), np.eye(3)) or round(np.linalg.det(axes)) != 1:
            raise ValueError(f"frame {self.name!r}: expected a right-handed frame, given {axes.tolist()}")

    @property
    def axes(self) -> np.ndarray:
        """Rows right, away and up, float64 [3, 3]: takes columns of this frame to what `OBJECT` calls x, y and z."""
        return np.array([self.right, self.away, self.up], np.float64)

    @property
    def words(self) -> str:
        """Its axes for people, as "x right, y up, z towards the viewer"."""
        found = []
        for number, axis in enumerate("xyz"):
            column = self.axes[:, number]
            row = int(np.abs(column).argmax())
            found.append(f"{axis} {_DIRECTIONS[row][int(column[row] < 0)]}")
        return ", ".join(found)


_DIRECTIONS = (("right", "left"), ("away", "towards the viewer"), ("up", "down"))

# An object as the models make it, in -0.5..0.5, and in splat.ply and mesh.ply.
OBJECT = Frame("object", right=(1, 0, 0), up=(0, 0, 1), away=(0, 1, 0))
# The camera of the photo as poses and point maps have it: PyTorch3D's. Scenes are in it.
CAMERA = Frame("camera", right=(-1, 0, 0), up=(0, 1, 0), away=(0, 0, 1))
# The same camera as OpenCV, MoGe, RealSense and COLMAP have it.
OPENCV = Frame("opencv", right=(1, 0, 0), up=(0, -1, 0), away=(0, 0, 1))
# The same camera as OpenGL, Blender and glTF's cameras have it.
OPENGL = Frame("opengl", right=(1, 0, 0), up=(0, 1, 0), away=(0, 0, -1))
# An object in a .glb file, whose front looks towards +z.
GLTF = Frame("gltf", right=(1, 0, 0), up=(0, 1, 0), away=(0, 0, -1))

FRAMES = {frame.name: frame for frame in (OBJECT, CAMERA, OPENCV, OPENGL, GLTF)}


def rotation(source: Frame, target: Frame) -> np.ndarray:
    """What takes columns (x, y, z) of `source` to those of `target`, which seen from the front are the same: float64 [3, 3]."""
    return target.axes.T @ source.axes


def matrix(source: Frame, target: Frame) -> np.ndarray:
    """`rotation` for columns (x, y, z, 1): float64 [4, 4]."""
    found = np.eye(4)
    found[:3, :3] = rotation(source, target)
    return found


def frame(name: str) -> Frame:
    """The frame of `FRAMES` by its name; ValueError for another."""
    check_choice("frame", name, FRAMES)
    return FRAMES[name]
