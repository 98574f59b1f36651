"""Pictures of Gaussians by compiled kernels: as `picture.splat_picture` draws them, in float32, many views of the same ones."""

import numpy as np
import tvm

from sam3d_tvm.pose import quaternion_to_matrix
from sam3d_tvm.splat.cameras import Camera
from sam3d_tvm.splat.gaussians import Gaussians
from sam3d_tvm.splat.picture import BEYOND, LARGEST_ALPHA, LEAST_ALPHA, LOW_PASS, NEAR, OPAQUE, REACH
from tir_kernels.cpu import splat_tiles as kernels
from tir_kernels.cpu.splat_tiles import CHANNELS, COLUMNS, DEPTH, SEEN, TILE, compiled


class Raster:
    """Draws `gaussians` as often as is asked for. For one thread at a time; the kernels use all threads."""

    def __init__(self, gaussians: Gaussians):
        count = len(gaussians)
        axes = quaternion_to_matrix(gaussians.rotation.astype(np.float64)) * gaussians.scaling[:, None]  # [N, 3, 3]
        arrays = (gaussians.xyz, axes.reshape(count, 9), gaussians.opacity, gaussians.colors)
        self._given = [_tensor(array) for array in arrays]
        self._ellipses = _tensor(np.zeros((count, COLUMNS)))
        self._tiles = _tensor(np.zeros((count, 4)), np.int32)
        self._project = compiled(kernels.project(NEAR, LOW_PASS, REACH**2, LEAST_ALPHA, BEYOND))
        self._count, self._deal = compiled(kernels.count()), compiled(kernels.deal())
        self._composite = compiled(kernels.composite(LARGEST_ALPHA, OPAQUE))

    def draw(self, camera: Camera, side: int) -> tvm.runtime.Tensor:
        """float32 [CHANNELS, side, side], with a side that is a multiple of `TILE`: red, green, blue, what is seen of what is
        behind all, depth; the first three and the last as sums over Gaussians, by what is seen of each."""
        self._project(*self._given, camera_numbers(camera, side), self._ellipses, self._tiles)
        across = side // TILE
        wide = _tensor(np.array([across]), np.int32)
        counts = _tensor(np.zeros(across**2), np.int32)
        self._count(self._tiles, wide, counts)
        starts = np.concatenate([[0], np.cumsum(counts.numpy())])
        members = tvm.runtime.empty((int(starts[-1]),), "int32")
        self._deal(_tensor(self._by_depth(), np.int32), self._tiles, wide, _tensor(starts[:-1], np.int32), members)
        picture = tvm.runtime.empty((CHANNELS, side, side), "float32")
        self._composite(self._ellipses, members, _tensor(starts, np.int32), picture)
        return picture

    def _by_depth(self) -> np.ndarray:
        """The Gaussians that are drawn, nearest first, those of equal depth in their order."""
        tiles = self._tiles.numpy()
        drawn = np.flatnonzero(tiles[:, 1] > tiles[:, 0])
        depth = np.ascontiguousarray(self._ellipses.numpy()[drawn, kernels.FAR])  # above 0, so that bits are in order
        keys = np.sort(depth.view(np.uint32).astype(np.uint64) << np.uint64(32) | drawn.astype(np.uint64))
        return keys & np.uint64(0xFFFFFFFF)


class Lookup:
    """What points [M, 3] with normals [M, 3] see of themselves in pictures: `sums` float32 [M, 4], weighted colours and
    weights, to which every call adds; see `splat_tiles.look_up`."""

    def __init__(self, points: np.ndarray, normals: np.ndarray, least_cover: float, least_cosine: float):
        lengths = np.linalg.norm(normals, axis=1, keepdims=True)
        self._points, self._normals = _tensor(points), _tensor(normals / np.where(lengths > 0, lengths, 1))
        self._sums = _tensor(np.zeros((len(points), 4)))
        self._look_up = compiled(kernels.look_up(least_cover, least_cosine))

    def add(self, camera: Camera, picture: tvm.runtime.Tensor, slack: float) -> None:
        """Adds what a picture of `Raster` has at the points, where its depth is within `slack` of theirs."""
        numbers = camera_numbers(camera, picture.shape[1])
        self._look_up(self._points, self._normals, numbers, picture, _tensor(np.array([slack])), self._sums)

    @property
    def sums(self) -> np.ndarray:
        return self._sums.numpy()


def over(picture: np.ndarray, background=(1.0, 1.0, 1.0)) -> np.ndarray:
    """What `Raster.draw` gave as colours over a background: float32 [side, side, 3]."""
    return np.moveaxis(picture[:SEEN] + picture[SEEN] * np.float32(background)[:, None, None], 0, -1)


def depth_of(picture: np.ndarray) -> np.ndarray:
    """The mean depth of what is seen at every pixel of it, [side, side]; NaN where nothing is."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(picture[SEEN] < 1, picture[DEPTH] / (1 - picture[SEEN]), np.nan)


def camera_numbers(camera: Camera, side: int) -> tvm.runtime.Tensor:
    """A camera as the kernels take it."""
    return _tensor(np.concatenate([camera.rotation.reshape(-1), camera.position, [camera.focal * side, side]]))


def _tensor(array: np.ndarray, dtype=np.float32) -> tvm.runtime.Tensor:
    return tvm.runtime.tensor(np.ascontiguousarray(array, dtype))
