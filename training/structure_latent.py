"""The latent of a structure in closed form: principal components of its distance field, block by block.

The field on the grid, in voxels, is cut at `CUT` and divided by it. Blocks of 8^3 voxels give `BLOCK_CHANNELS` components each;
of those of 2^3 blocks together `CHANNELS` are kept. These are the 4^3 tokens of the structure generator, x slowest. Channels
are divided by a power of their deviation, which brings them nearer to each other and leaves more weight to what matters more.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from sparse_ops.deploy.files import save_safetensors

GRID = 64
CUT = 4.0
BLOCK, GROUP = 8, 2
BLOCK_CHANNELS, CHANNELS = 12, 48
SIDE = GRID // BLOCK // GROUP  # tokens along an axis
TOKENS = SIDE**3
FIT_EVERY = 7  # blocks, of which there are very many
EVENED = 0.7  # of the logarithm of a channel's deviation is taken out


@dataclass(frozen=True, eq=False)
class StructureLatent:
    """block_mean [512], block_basis [512, 12]; mean [96], basis [96, 48] with orthonormal columns; scale [48]: float32."""

    block_mean: np.ndarray
    block_basis: np.ndarray
    mean: np.ndarray
    basis: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, fields: np.ndarray) -> "StructureLatent":
        """Of fields float32 [B, 64, 64, 64] in -1..1."""
        blocks = _blocks(fields).reshape(-1, BLOCK**3)
        block_mean, block_basis, _ = _components(blocks[::FIT_EVERY], BLOCK_CHANNELS)
        groups = _grouped((_blocks(fields) - block_mean) @ block_basis).reshape(-1, BLOCK_CHANNELS * GROUP**3)
        mean, basis, deviation = _components(groups, CHANNELS)
        scale = deviation**EVENED
        scale *= np.sqrt(np.mean((deviation / scale) ** 2))  # so that the mean square of all channels is 1
        return cls(*(np.ascontiguousarray(part, np.float32) for part in (block_mean, block_basis, mean, basis, scale)))

    def encode(self, fields: np.ndarray) -> np.ndarray:
        """float32 [B, 64, 64, 64] in -1..1 -> float32 [B, 64, 48]."""
        groups = _grouped((_blocks(fields) - self.block_mean) @ self.block_basis)
        return (groups - self.mean) @ self.basis / self.scale

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """The inverse of `encode` but for what the components leave out."""
        groups = latents * self.scale @ self.basis.T + self.mean
        blocks = groups.reshape(-1, SIDE, SIDE, SIDE, GROUP, GROUP, GROUP, BLOCK_CHANNELS).transpose(0, 1, 4, 2, 5, 3, 6, 7)
        n = SIDE * GROUP
        fields = (blocks.reshape(-1, n**3, BLOCK_CHANNELS) @ self.block_basis.T + self.block_mean).reshape(
            -1, n, n, n, *[BLOCK] * 3
        )
        return fields.transpose(0, 1, 4, 2, 5, 3, 6).reshape(-1, GRID, GRID, GRID)

    def save(self, path: Path) -> None:
        save_safetensors(path, vars(self))

    @classmethod
    def load(cls, path: Path) -> "StructureLatent":
        return cls(**load_file(path))


def cut_field(distance: np.ndarray) -> np.ndarray:
    """Distances [...] in units of the cube -> the field in -1..1."""
    return np.clip(distance * (GRID / CUT), -1, 1)


def _blocks(fields: np.ndarray) -> np.ndarray:
    """[B, 64, 64, 64] -> [B, 8^3, 8^3], blocks and their voxels x slowest."""
    n = GRID // BLOCK
    return fields.reshape(-1, n, BLOCK, n, BLOCK, n, BLOCK).transpose(0, 1, 3, 5, 2, 4, 6).reshape(-1, n**3, BLOCK**3)


def _grouped(blocks: np.ndarray) -> np.ndarray:
    """[B, 8^3, C] -> [B, 4^3, 8 C]."""
    parts = blocks.reshape(-1, SIDE, GROUP, SIDE, GROUP, SIDE, GROUP, blocks.shape[-1]).transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return parts.reshape(-1, TOKENS, GROUP**3 * blocks.shape[-1])


def _components(rows: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean [C], the first principal components [C, count] and the deviations [count] along them, of rows [N, C]."""
    mean = rows.mean(0, dtype=np.float64)
    centred = rows - mean.astype(np.float32)
    variance, basis = np.linalg.eigh(centred.T.astype(np.float64) @ centred / len(rows))
    basis = basis[:, ::-1][:, :count]
    basis = basis * np.where(basis.sum(0) < 0, -1, 1)  # of two signs the same on every machine
    return mean, basis, np.sqrt(variance[::-1][:count])
