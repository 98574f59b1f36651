""".spz files, as Niantic published the format: everything in a few bits, sorted by attribute, and compressed by gzip.

A header of 16 bytes, and then for all N Gaussians, one attribute after the other:

    position     3 x 24 bits, signed, little-endian: fixed point with as many fractional bits as the header says
    opacity      uint8, in 1/255
    colour       3 x uint8, 255 (0.15 f + 0.5) for the coefficient f of the constant spherical harmonic
    scale        3 x uint8, 16 (log scale + 10)
    rotation     x, y, z of the unit quaternion with w of at least 0, 3 x uint8, 127.5 (q + 1)

That is version 2, without further harmonics, which most programs read; version 3 has four bytes for the rotation. Axes are
x right, y up, z towards the viewer: `frames.OPENGL`. There is no place for numbers of objects.
"""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from sam3d_tvm.frames import OPENGL
from sam3d_tvm.splat.files.splat import logits
from sam3d_tvm.splat.gaussians import Gaussians

HEADER = struct.Struct("<4sIIBBBB")  # magic, version, N, degree of harmonics, fractional bits, flags, 0
MAGIC = b"NGSP"
VERSION = 2
LARGEST_FIXED = 2**23 - 1  # of 24 bits with a sign
MOST_BITS = 23  # after the point
MOST_GAUSSIANS = 10_000_000  # which Niantic's library reads
COLOUR_SCALE = 0.15
ROTATION_BYTES = {2: 3, 3: 4}  # by version
HARMONICS = (0, 9, 24, 45, 72)  # further ones of a Gaussian, by degree


def encode(gaussians: Gaussians) -> bytes:
    """A file, for Gaussians in `OPENGL`. Colours beyond -0.44 and 1.44, where 0 to 1 is what a screen shows, and scales beyond
    exp(-10) and exp(5.94) are brought to these ends. ValueError for a position beyond 2^23 units."""
    xyz = gaussians.xyz.astype(np.float64)
    bits = fractional_bits(np.abs(xyz).max(initial=0))
    fixed = np.rint(xyz * 2**bits).astype("<i4")
    rotation = gaussians.rotation.astype(np.float64)
    rotation[rotation[:, 0] < 0] *= -1
    parts = [
        fixed[..., None].view(np.uint8)[..., :3],  # the low bytes of two's complement
        _bytes(255 * gaussians.opacity.astype(np.float64)),
        _bytes(255 * (COLOUR_SCALE * gaussians.features_dc.astype(np.float64) + 0.5)),
        _bytes(16 * (gaussians.log_scaling.astype(np.float64) + 10)),
        _bytes(127.5 * (rotation[:, 1:] + 1)),
    ]
    header = HEADER.pack(MAGIC, VERSION, len(gaussians), 0, bits, 0, 0)
    return gzip.compress(header + b"".join(part.tobytes() for part in parts), mtime=0)


def fractional_bits(extent: float) -> int:
    """As many as leave room for positions up to `extent`. ValueError if there is none."""
    if extent > LARGEST_FIXED:
        raise ValueError(f"gaussians: expected positions within {LARGEST_FIXED:,} units for a .spz file, given {extent:g}")
    bits = MOST_BITS
    while np.rint(extent * 2**bits) > LARGEST_FIXED:
        bits -= 1
    return bits


def read(path: Path) -> Gaussians:
    """Versions 2 and 3; harmonics beyond the constant one are not read.

    ValueError for another version or magic, more than 10 million Gaussians, and data that is cut short or does not unpack.
    """
    packed = path.read_bytes()
    stream = zlib.decompressobj(wbits=31)
    try:
        start = stream.decompress(packed, HEADER.size)
        if len(start) < HEADER.size or start[:4] != MAGIC:
            raise ValueError("expected a header of 16 bytes that begins with NGSP")
        _, version, count, degree, bits, _, _ = HEADER.unpack(start)
        if version not in ROTATION_BYTES:
            raise ValueError(f"expected version 2 or 3, given {version}")
        if count > MOST_GAUSSIANS:
            raise ValueError(f"expected up to {MOST_GAUSSIANS:,} Gaussians, given {count:,}")
        if degree >= len(HARMONICS):
            raise ValueError(f"expected spherical harmonics up to degree {len(HARMONICS) - 1}, given {degree}")
        widths = (9, 1, 3, 3, ROTATION_BYTES[version])
        wanted = count * (sum(widths) + HARMONICS[degree])
        # No more than the header says is unpacked, whatever there is.
        data = stream.decompress(stream.unconsumed_tail, wanted) if wanted else b""
        if len(data) < wanted:
            raise ValueError(f"expected {wanted:,} bytes for {count:,} Gaussians, given {len(data):,}")
        # To the checksum, unless something follows.
        if not stream.decompress(stream.unconsumed_tail, 1) and not stream.eof:
            raise ValueError("expected the end of the data, given a file that is cut short")
    except zlib.error as error:
        raise ValueError(f"expected data that gzip unpacks: {error}") from error
    parts, at = [], 0
    for width in widths:
        parts.append(np.frombuffer(data, np.uint8, count * width, at).reshape(count, width))
        at += count * width
    position, opacity, colour, scale, rotation = parts
    wide = np.zeros((count, 3, 4), np.uint8)
    wide[..., 1:] = position.reshape(count, 3, 3)
    fixed = wide.view("<i4")[..., 0] >> 8  # which repeats the sign
    return Gaussians(
        xyz=fixed / 2.0**bits,
        features_dc=(colour / 255 - 0.5) / COLOUR_SCALE,
        opacity_logit=logits(opacity[:, 0]),
        log_scaling=scale / 16 - 10,
        quaternion=_three_bytes(rotation) if version == 2 else _smallest_three(rotation),
        frame=OPENGL,
    )


def _bytes(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _three_bytes(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) float64 [N, 4] of uint8 [N, 3]."""
    xyz = rotation / 127.5 - 1
    return np.concatenate([np.sqrt(np.maximum(1 - (xyz**2).sum(1, keepdims=True), 0)), xyz], 1)


def _smallest_three(rotation: np.ndarray) -> np.ndarray:
    """(w, x, y, z) float64 [N, 4] of uint8 [N, 4]: in 32 bits the place of the largest of (x, y, z, w), then a sign and 9 bits
    of each of the others, in 1/511 of the square root of a half."""
    word = np.ascontiguousarray(rotation).view("<u4")[:, 0].astype(np.int64)
    largest = word >> 30
    fields = word[:, None] >> np.array([20, 10, 0]) & 1023  # [N, 3]
    others = np.where(fields & 512, -1, 1) * (fields & 511) * (np.sqrt(0.5) / 511)
    return np.roll(with_largest(others, largest), 1, 1)


def with_largest(others: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Unit quaternions [N, 4] of which `others` [N, 3] are known, in their order, and not the one at place `largest` [N]."""
    length = np.sqrt(np.maximum(1 - (others**2).sum(1), 0))
    place = np.arange(4)
    known = np.concatenate([others, length[:, None]], 1)
    source = np.where(place == largest[:, None], 3, place - (place > largest[:, None]))
    return np.take_along_axis(known, source, 1)
