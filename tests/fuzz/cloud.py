"""Random voxels with features: any number of rows, in any order, near and far, of several batch elements that may be empty."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from tir_kernels.spec.coordinate_index import BATCH_LIMIT, COORDINATE_LIMIT

from .oracle import Voxels, keys

# Borders of tiles, blocks and chunks, and what lies between.
ROWS = (0, 1, 2, 3, 7, 16, 31, 63, 64, 65, 100, 129, 200, 300, 511, 512, 513, 700, 1025, 1500, 2500)
LIKELY = np.array([2, 3, 2, 2, 2, 2, 2, 3, 3, 3, 6, 4, 6, 6, 3, 3, 3, 4, 3, 2, 1], float)
FORMS = ("blob", "plane", "line", "scattered", "far", "shell", "edge")
ORDERS = ("any", "by element", "ascending")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Cloud:
    """What a cloud is drawn by: `voxels(infers)` and `feats(voxels, channels, dtype)` follow from it."""

    seed: int
    dims: int
    rows: int
    form: str
    order: str
    elements: tuple[int, ...]  # those that have voxels
    batch: int  # how many there are
    negative: bool
    given: bool  # whether extents are given; else they are inferred

    @classmethod
    def draw(cls, rng: np.random.Generator, dims: int, most: int = ROWS[-1]) -> "Cloud":
        rows = min(int(rng.choice(ROWS, p=LIKELY / LIKELY.sum())), most)
        batch = int(rng.choice([1, 2, 3, 5, BATCH_LIMIT], p=[0.35, 0.3, 0.22, 0.1, 0.03]))
        filled = rng.choice(batch, int(rng.integers(1, min(batch, 5) + 1)), replace=False)
        negative = bool(rng.random() < 0.2)
        return cls(
            seed=int(rng.integers(1 << 31)),
            dims=dims,
            rows=rows,
            form=str(rng.choice(FORMS)),
            order=str(rng.choice(ORDERS, p=[0.5, 0.25, 0.25])),
            elements=tuple(sorted(int(b) for b in filled)),
            batch=batch,
            negative=negative,
            given=not negative and bool(rng.random() < 0.6),
        )

    def voxels(self, infers: bool = False, shape=None) -> Voxels:
        """The voxels; `shape` in place of the extents that the cloud would have."""
        rng = np.random.default_rng(self.seed)
        places = [self._places(rng, count) for count in np.diff(np.linspace(0, self.rows, len(self.elements) + 1).astype(int))]
        coords = [np.insert(place, 0, b, axis=1) for b, place in zip(self.elements, places, strict=True)]
        coords = np.concatenate([np.zeros((0, 4), int), *coords])
        coords[:, 1 : 4 - self.dims] = 0
        if self.form == "edge" and len(coords) and not self.negative:
            coords[:, 4 - self.dims :] += COORDINATE_LIMIT - 1 - coords[:, 4 - self.dims :].max(0)
        _, first = np.unique(keys(coords), return_index=True)  # in fewer dimensions places may fall together
        coords = coords[np.sort(first)]
        if self.order == "ascending":
            coords = coords[np.argsort(keys(coords))]
        else:
            coords = coords[rng.permutation(len(coords))]
            if self.order == "by element":
                coords = coords[np.argsort(coords[:, 0], kind="stable")]
        if shape is None and self.given:
            room = np.minimum(coords[:, 1:].max(0, initial=0) + 1 + rng.integers(0, 4, 3), COORDINATE_LIMIT)
            shape = (1,) * (3 - self.dims) + tuple(int(n) for n in room[3 - self.dims :])
        elif self.negative and len(coords):
            low = coords[:, 4 - self.dims :].min(0) + COORDINATE_LIMIT if self.form == "edge" else rng.integers(1, 9, self.dims)
            coords[:, 4 - self.dims :] -= low
        return Voxels.of(coords, None if infers else shape, self.batch, self.dims, infers)

    def _places(self, rng, count: int) -> np.ndarray:
        """Distinct places int [count, 3], none of them negative; in fewer dimensions along the last axes."""
        d = self.dims
        if self.form == "line":
            side = [1, 1, max(2 * count, 1)]
        elif self.form == "plane" and d > 1:
            side = [1, *[int((1.5 * count) ** (1 / 2)) + 2] * 2]
        elif self.form == "scattered":
            side = [1] * (3 - d) + [{1: 30000, 2: 1500, 3: 90}[d]] * d
        else:  # most of a cube
            side = [1] * (3 - d) + [int((1.6 * count) ** (1 / d)) + 2] * d
        cells = rng.choice(int(np.prod(side)), count, replace=False)
        places = np.stack(np.unravel_index(cells, side), 1).astype(int)
        if self.form == "shell" and d == 3:
            places = np.unique(places * [1, 1, 0] + [0, 0, 1] * (places[:, :1] ** 2 // 3 + places[:, 1:2]), axis=0)
        if self.form == "far" and count:  # too far for a grid: a hash
            places[:, 2] += rng.choice([0, 9000, 12345], count)
        return places

    def feats(self, voxels: Voxels, channels: int, dtype: str, special: bool = False) -> np.ndarray:
        """Features [N, channels] of the voxels, the same for a voxel wherever its row is; `special`: NaN and infinities too."""
        rng = np.random.default_rng([self.seed, 1])
        every = rng.standard_normal((4096, channels))
        if special:
            for value, share in ((np.nan, 0.01), (np.inf, 0.02), (-np.inf, 0.1), (0.0, 0.1), (-0.0, 0.1)):
                every[rng.random(every.shape) < share] = value
        at = keys(voxels.coords) * 2654435761 % (1 << 31) % len(every)
        return np.ascontiguousarray(every[at].astype(numpy_dtype(dtype)))


def numpy_dtype(dtype: str) -> np.dtype:
    """numpy's dtype of that name, bfloat16 too."""
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def shuffled(voxels: Voxels, rng) -> Voxels:
    """The same voxels in another order of rows."""
    return Voxels.of(voxels.coords[rng.permutation(voxels.rows)], voxels.shape, voxels.batch, voxels.dims, voxels.infers)
