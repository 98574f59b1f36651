"""Compressed .ply files, as SuperSplat and PlayCanvas write and read them: four words of 32 bits a Gaussian, in chunks of 256.

A chunk has the least and the largest position, logarithm of scale, and colour of its Gaussians as float32; the words say where
between these a value is:

    packed_position     x, y, z in 11, 10 and 11 bits
    packed_rotation     2 bits: which of (w, x, y, z) is largest; the others in 10 bits each, from -1/sqrt(2) to 1/sqrt(2)
    packed_scale        as the position
    packed_color        red, green, blue and opacity in 8 bits each

The first is in the highest bits. Gaussians are in Morton order, so that chunks are small. SuperSplat takes y as down, so that
is how it is written: `frames.OPENCV`, which the header says. There is no place for numbers of objects.
"""

from pathlib import Path

import numpy as np
from plyfile import PlyElement

from sam3d_tvm.frames import OPENCV
from sam3d_tvm.splat.files import ply
from sam3d_tvm.splat.files.splat import logits
from sam3d_tvm.splat.files.spz import with_largest
from sam3d_tvm.splat.gaussians import CONSTANT_HARMONIC, Gaussians

CHUNK = 256
POSITION_BITS, ROTATION_BITS, COLOUR_BITS = (11, 10, 11), (10, 10, 10), (8, 8, 8, 8)
WORDS = ("packed_position", "packed_rotation", "packed_scale", "packed_color")
POSITIONS, SCALES, COLOURS = (
    [f"{end}_{name}" for end in ("min", "max") for name in names]
    for names in (("x", "y", "z"), ("scale_x", "scale_y", "scale_z"), ("r", "g", "b"))
)
LONGEST_HEADER = 1 << 14  # bytes within which it says what the vertices are


def encode(gaussians: Gaussians) -> bytes:
    """A file, for Gaussians in `OPENCV`."""
    order = np.argsort(_morton(gaussians.xyz), kind="stable")
    colours = 0.5 + CONSTANT_HARMONIC * gaussians.features_dc[order].astype(np.float64)
    position_ends, position = _within_chunks(gaussians.xyz[order])
    scale_ends, scale = _within_chunks(gaussians.log_scaling[order])
    colour_ends, colour = _within_chunks(colours)
    opacity = gaussians.opacity[order, None].astype(np.float64)
    chunks = np.concatenate([position_ends, scale_ends, colour_ends], 1).astype("<f4")
    words = np.stack(
        [
            _packed(position, POSITION_BITS),
            _packed_rotation(gaussians.rotation[order].astype(np.float64)),
            _packed(scale, POSITION_BITS),
            _packed(np.concatenate([colour, opacity], 1), COLOUR_BITS),
        ],
        1,
    ).astype("<u4")
    elements = [
        PlyElement.describe(chunks.view([(name, "<f4") for name in (*POSITIONS, *SCALES, *COLOURS)])[:, 0], "chunk"),
        PlyElement.describe(words.view([(name, "<u4") for name in WORDS])[:, 0], "vertex"),
    ]
    return ply.write(elements, ply.comments(gaussians.frame))


def recognise(path: Path) -> bool:
    """Whether the header of a PLY file has packed positions."""
    with open(path, "rb") as file:
        header = file.read(LONGEST_HEADER).partition(b"end_header")[0]
    return b"packed_position" in header


def read(path: Path) -> Gaussians:
    """Spherical harmonics beyond the constant one are not read. ValueError for what is no PLY file, cut short, or has too few
    chunks or other columns."""
    found = ply.parse(path)
    vertex, chunk = (found[name].data if name in found else np.zeros(0, [("none", "f4")]) for name in ("vertex", "chunk"))
    has_colours = COLOURS[0] in chunk.dtype.names  # older files have none, and mean 0 to 1
    for table, names, kinds in ((vertex, WORDS, "iu"), (chunk, POSITIONS + SCALES + (COLOURS if has_colours else []), "f")):
        if wrong := [name for name in names if name not in table.dtype.names or table.dtype[name].kind not in kinds]:
            raise ValueError(f"path: expected a compressed .ply file, given {str(path)!r} without numbers {', '.join(wrong)}")
    if len(chunk) * CHUNK < len(vertex):
        raise ValueError(f"path: expected a chunk for {CHUNK} Gaussians each, given {str(path)!r} with {len(chunk)}")
    words = [vertex[name].astype(np.int64) & 0xFFFFFFFF for name in WORDS]
    which = np.arange(len(vertex)) // CHUNK

    def placed(values: np.ndarray, names: list[str]) -> np.ndarray:
        ends = np.stack([chunk[name].astype(np.float64) for name in names], 1)[which]  # [N, 6]
        return ends[:, :3] * (1 - values) + ends[:, 3:] * values

    colour = _unpacked(words[3], COLOUR_BITS)
    others = (_unpacked(words[1], ROTATION_BITS) - 0.5) * np.sqrt(2)
    return Gaussians(
        xyz=placed(_unpacked(words[0], POSITION_BITS), POSITIONS),
        features_dc=((placed(colour[:, :3], COLOURS) if has_colours else colour[:, :3]) - 0.5) / CONSTANT_HARMONIC,
        opacity_logit=logits(255 * colour[:, 3]),
        log_scaling=placed(_unpacked(words[2], POSITION_BITS), SCALES),
        quaternion=with_largest(others, words[1] >> 30),
        frame=ply.frame_of(found) or OPENCV,
    )


def _within_chunks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest of every chunk, float64 [chunks, 6] rounded to float32, and where between them the values
    [N, 3] are, float64 in 0..1."""
    values = values.astype(np.float64)
    if len(values) == 0:
        return np.zeros((0, 6)), values
    starts = np.arange(0, len(values), CHUNK)
    low, high = (f.reduceat(values, starts).astype(np.float32).astype(np.float64) for f in (np.minimum, np.maximum))
    which = np.arange(len(values)) // CHUNK
    extent = high - low
    return np.concatenate([low, high], 1), np.clip((values - low[which]) / np.where(extent > 0, extent, 1)[which], 0, 1)


def _packed(values: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """Values [N, C] in 0..1 in so many bits each, the first in the highest: int64 [N]."""
    word = np.zeros(len(values), np.int64)
    for column, width in zip(values.T, bits, strict=True):
        word = word << width | np.rint(column * (2**width - 1)).astype(np.int64)
    return word


def _unpacked(word: np.ndarray, bits: tuple[int, ...]) -> np.ndarray:
    """Values [N, C] in 0..1 of what `_packed` makes."""
    shifts = np.cumsum([0, *bits[:0:-1]])[::-1]
    largest = 2 ** np.array(bits) - 1
    return (word[:, None] >> shifts & largest) / largest


def _packed_rotation(rotation: np.ndarray) -> np.ndarray:
    """int64 [N] of unit quaternions [N, 4]."""
    largest = np.abs(rotation).argmax(1)
    rotation = rotation * np.where(np.take_along_axis(rotation, largest[:, None], 1) < 0, -1, 1)
    others = np.array([[place for place in range(4) if place != skipped] for skipped in range(4)])[largest]  # [N, 3]
    values = np.clip(np.take_along_axis(rotation, others, 1) * np.sqrt(0.5) + 0.5, 0, 1)
    return largest << 30 | _packed(values, ROTATION_BITS)


def _morton(xyz: np.ndarray) -> np.ndarray:
    """Keys int64 [N] of positions: the bits of x, y and z in turn, 10 of each, across their box."""
    low, high = xyz.min(0, initial=np.inf), xyz.max(0, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        extent = (high.astype(np.float64) - low).max(initial=0)
    if not extent > 0:
        return np.zeros(len(xyz), np.int64)
    cells = (1023 * ((xyz.astype(np.float64) - low) / extent)).astype(np.int64)
    key = np.zeros(len(xyz), np.int64)
    for bit in range(10):
        for axis in range(3):
            key |= (cells[:, axis] >> bit & 1) << (3 * bit + axis)
    return key
