"""The data that is trained on, in files of some hundred objects: photos as the models see them, latents, poses.

Every object is there twice, as it is and in the mirror (x -> -x), with `PHOTOS` photos, of which the last has a point map.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sam3d_tvm.photo.preprocess import Preprocessed, preprocess
from sam3d_tvm.resize import nearest_index
from training.photos import HELD_OUT, normalised_rotation, rotation_6d, sample_views, take_photo
from training.shapes import MATERIALS, Object
from training.structure_latent import GRID, StructureLatent, cut_field

SEED, HELD_OUT_SEED = 1, HELD_OUT - 1  # of the objects that are trained on, and of those that are looked at while training
SIZE = 112  # pixels of a photo as the models see it
POINTS = 32  # pixels of a point map
VIEWS = 2  # cameras an object
PHOTOS = 2 * VIEWS
FIT_ON = 400  # objects, and their mirror images, from which the principal components are taken

FIELDS = {  # of a file of N objects: name -> shape of one, dtype
    "index": ((), np.int64),  # the seed's second part
    "occupied": ((GRID**3 // 8,), np.uint8),  # bits
    "latent": ((2, 64, 48), np.float16),  # as it is, in the mirror
    "image": ((PHOTOS, SIZE, SIZE, 3), np.uint8),
    "mask": ((PHOTOS, SIZE, SIZE), np.bool_),
    "palette": ((PHOTOS, MATERIALS, 3), np.float32),
    "seen": ((PHOTOS, MATERIALS), np.bool_),  # materials of which the photo shows something
    "rotation": ((PHOTOS, 6), np.float32),  # not normalised
    "pointmap": ((3, POINTS, POINTS), np.float16),  # of the last photo
    "placement": ((4,), np.float32),  # with that point map: translation, and logarithm of the scale
}
SEEN_PIXELS = 60
OCCUPIED_BELOW = 0.45  # voxels outside


def grid_points(size: int = GRID) -> torch.Tensor:
    """The middles of voxels, float32 [size^3, 3] in the cube, x slowest."""
    axis = (torch.arange(size) + 0.5) / size - 0.5
    return torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3)


def occupied(field: np.ndarray) -> np.ndarray:
    """Which voxels belong to an object, bool, of distances in units of the cube: those whose cell the surface may pass through
    too, so that it does not leave what the mesh decoder refines."""
    return field * GRID < OCCUPIED_BELOW


def field_of(thing: Object) -> np.ndarray:
    """The signed distance at the middles of voxels, float32 [64, 64, 64] in units of the cube."""
    return thing.distance(grid_points()).reshape(GRID, GRID, GRID).numpy()


def fit_latent(seed: int, count: int) -> StructureLatent:
    """The principal components of the first `count` objects of a seed."""
    fields = []
    for index in range(count):
        found = sample_views(seed, index, 0)
        field = cut_field(field_of(found[0]))
        fields += [field, field[::-1]]
    return StructureLatent.fit(np.stack(fields))


def placement(inputs: Preprocessed, position: np.ndarray) -> np.ndarray:
    """float32 [4]: the tokens translation and log(scale) of a cube whose middle is at `position` [3] in `frames.CAMERA`."""
    return np.r_[(position - inputs.shift[0]) / inputs.scale[0], np.log(1 / inputs.scale[0, 0])].astype(np.float32)


def one_object(seed: int, index: int, latent: StructureLatent) -> dict[str, np.ndarray] | None:
    """The fields of an object, or None where a camera hardly sees it."""
    found = sample_views(seed, index, VIEWS)
    if found is None:
        return None
    thing, views = found
    field = field_of(thing)
    cut = cut_field(field)
    rows = {"index": np.array(index), "occupied": np.packbits(occupied(field).reshape(-1))}
    rows["latent"] = latent.encode(np.stack([cut, cut[::-1]]))
    parts = {name: [] for name in ("image", "mask", "palette", "seen", "rotation")}
    for number in range(PHOTOS):
        view, with_points = views[number % VIEWS], number == PHOTOS - 1
        photo = take_photo(np.random.default_rng([seed, index, number]), view, with_points)
        inputs = preprocess(photo.rgba, photo.pointmap, SIZE)
        parts["image"].append((inputs.slat["image"][0].transpose(1, 2, 0) * 255 + 0.5).astype(np.uint8))
        parts["mask"].append(inputs.slat["mask"][0, 0] > 0.5)
        parts["palette"].append(photo.palette)
        parts["seen"].append(np.bincount(view.surface.materials.numpy(), minlength=MATERIALS) > SEEN_PIXELS)
        parts["rotation"].append(rotation_6d(view.camera))
        if with_points:
            nearest = nearest_index(SIZE, POINTS)
            rows["pointmap"] = inputs.structure["pointmap"][0][:, nearest][:, :, nearest]
            middle = view.camera.view(np.zeros((1, 3)))[0] * [-1, -1, 1]
            rows["placement"] = placement(inputs, middle)
    return rows | {name: np.stack(values) for name, values in parts.items()}


def make_file(path: Path, seed: int, first: int, count: int, latent: StructureLatent, tell: Callable[[str], None]) -> None:
    """Write the objects `first` to `first + count` of a seed, of which a few are passed over. The file is whole or not
    there."""
    started, kept = time.monotonic(), []
    for index in range(first, first + count):
        if (rows := one_object(seed, index, latent)) is not None:
            kept.append(rows)
    arrays = {name: np.stack([rows[name] for rows in kept]).astype(dtype) for name, (_, dtype) in FIELDS.items()}
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        np.savez(file, **arrays)
    partial.replace(path)
    tell(f"{path.name}: {len(kept)} objects in {time.monotonic() - started:.0f} s")


@dataclass(eq=False)
class Batch:
    """image float32 [B, 3, 112, 112] and mask [B, 1, 112, 112] in 0..1; pointmap float32 [B, 3, 32, 32], and `pointed` bool
    [B]: whether there is one; latent float32 [B, 64, 48]; rotation float32 [B, 6] normalised; placement float32 [B, 4]; palette
    float32 [B, MATERIALS, 3], seen bool [B, MATERIALS]."""

    image: torch.Tensor
    mask: torch.Tensor
    pointmap: torch.Tensor
    pointed: torch.Tensor
    latent: torch.Tensor
    rotation: torch.Tensor
    placement: torch.Tensor
    palette: torch.Tensor
    seen: torch.Tensor


class Dataset:
    """All files of a folder in memory. `folder`: with files of `make_file`."""

    def __init__(self, folder: Path, limit: int | None = None):
        paths = sorted(folder.glob("*.npz"))
        if not paths:
            raise ValueError(f"{folder}: expected files of objects, given none")
        parts, count = [], 0
        for path in paths:
            with np.load(path) as file:
                parts.append({name: file[name] for name in FIELDS})
            count += len(parts[-1]["index"])
            if limit is not None and count >= limit:
                break
        self.arrays = {name: np.concatenate([part.pop(name) for part in parts])[:limit] for name in FIELDS}

    def __len__(self) -> int:
        return len(self.arrays["index"])

    def batch(self, rows: np.ndarray, photos: np.ndarray, mirrored: np.ndarray) -> Batch:
        """Objects `rows` [B], the numbers of their photos [B], and whether each is mirrored [B]."""
        a = self.arrays
        flip = mirrored.astype(bool)
        image, mask = a["image"][rows, photos], a["mask"][rows, photos]
        image[flip], mask[flip] = image[flip][:, :, ::-1], mask[flip][:, :, ::-1]
        pointed = photos == PHOTOS - 1
        points = a["pointmap"][rows].astype(np.float32)
        points[flip] = points[flip][..., ::-1] * np.float32([-1, 1, 1])[:, None, None]
        points[~pointed] = np.nan
        place = np.where(pointed[:, None], a["placement"][rows], 0).astype(np.float32)
        place[flip, 0] *= -1
        rotation = a["rotation"][rows, photos].copy()
        rotation[flip] *= np.float32(
            [1, -1, -1, -1, 1, 1]
        )  # left turns into right, so that its x stays and the rest is negated
        return Batch(
            torch.from_numpy(image).permute(0, 3, 1, 2).float() / 255,
            torch.from_numpy(mask)[:, None].float(),
            torch.from_numpy(points),
            torch.from_numpy(pointed),
            torch.from_numpy(a["latent"][rows, flip.astype(int)].astype(np.float32)),
            torch.from_numpy(normalised_rotation(rotation)),
            torch.from_numpy(place),
            torch.from_numpy(a["palette"][rows, photos]),
            torch.from_numpy(a["seen"][rows, photos]),
        )

    def sample(self, random: np.random.Generator, count: int) -> Batch:
        """A random batch of photos of random objects, half of them mirrored."""
        rows, photos = random.integers(0, len(self), count), random.integers(0, PHOTOS, count)
        return self.batch(rows, photos, random.integers(0, 2, count))

    def occupied(self, rows: np.ndarray) -> np.ndarray:
        """bool [B, 64, 64, 64]: the voxels of objects, not mirrored."""
        return np.unpackbits(self.arrays["occupied"][rows], axis=1).reshape(-1, GRID, GRID, GRID).astype(bool)
