"""Sizes of DINOv2 (arXiv:2304.07193), with registers (arXiv:2309.16588) or without, and how its positions fit an image."""

from dataclasses import dataclass

import numpy as np

from sam3d_tvm.checks import check_size

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, which lie in 0..1


@dataclass(frozen=True, kw_only=True)
class DinoV2Config:
    """Sizes of a vision transformer of DINOv2, named as upstream names them.

    Positional embeddings are those of an image of `img_size`. For another grid they are resized as an image, bicubic: with
    `interpolate_antialias` so that a smaller grid averages, else as `position_matrices` says.
    """

    embed_dim: int
    depth: int
    num_heads: int
    img_size: int
    patch_size: int = 14
    num_register_tokens: int = 4
    mlp_ratio: float = 4
    interpolate_antialias: bool = True
    interpolate_offset: float = 0.0

    def __post_init__(self):
        for name in ("embed_dim", "depth", "num_heads", "patch_size", "img_size"):
            check_size(name, getattr(self, name), 1)
        check_size("num_register_tokens", self.num_register_tokens, 0)
        check_multiple("img_size", self.img_size, "patch_size", self.patch_size)
        check_multiple("embed_dim", self.embed_dim, "num_heads", self.num_heads)
        check_ratio("mlp_ratio", self.mlp_ratio, self.embed_dim)
        if not isinstance(self.interpolate_antialias, bool):
            raise ValueError(f"interpolate_antialias: expected True or False, given {self.interpolate_antialias!r}")
        offset = self.interpolate_offset
        if isinstance(offset, bool) or not isinstance(offset, (int, float)) or not 0 <= offset < 1:
            raise ValueError(f"interpolate_offset: expected a number from 0 to below 1, given {offset!r}")
        if self.interpolate_antialias and offset:
            raise ValueError(f"interpolate_offset: expected 0 with interpolate_antialias, given {offset!r}")

    @property
    def hidden(self) -> int:
        """Width of the feed-forward layers."""
        return int(self.embed_dim * self.mlp_ratio)

    @property
    def stored_grid(self) -> int:
        """Patches along each side of an image for which there are positional embeddings."""
        return self.img_size // self.patch_size


def check_multiple(name: str, value: int, of: str, divisor: int) -> None:
    """ValueError unless `value` is a multiple of `divisor`, which is called `of`."""
    if value % divisor:
        raise ValueError(f"{name}: expected a multiple of {of} {divisor}, given {value}")


def check_ratio(name: str, ratio: float, channels: int) -> None:
    """ValueError unless `ratio` times `channels` is one at least."""
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not ratio * channels >= 1:
        raise ValueError(f"{name}: expected a positive number, given {ratio!r}")


# The ViTs of DINOv2 by the names of its hub, where "_reg" behind one means registers: width, blocks, heads.
_SIZES = {"dinov2_vits14": (384, 12, 6), "dinov2_vitb14": (768, 12, 12), "dinov2_vitl14": (1024, 24, 16)}


def _hub(sizes: tuple[int, int, int], registers: bool) -> DinoV2Config:
    kinds = (4, True, 0.0) if registers else (0, False, 0.1)
    named = zip(("num_register_tokens", "interpolate_antialias", "interpolate_offset"), kinds, strict=True)
    return DinoV2Config(embed_dim=sizes[0], depth=sizes[1], num_heads=sizes[2], img_size=518, **dict(named))


HUB = {name + "_reg" * registers: _hub(sizes, registers) for registers in (True, False) for name, sizes in _SIZES.items()}


CUBIC = -0.75  # the slope at distance 1 of the cubic kernel that resizes without antialiasing


def position_matrices(config: DinoV2Config, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """float32 [rows, M] and [columns, M]: what resizes the stored M x M positions to a grid, along each axis.

    Bicubic without antialiasing: place i of n reads at (i + 1/2) M / (n + `interpolate_offset`) - 1/2, by four taps that are
    clamped to the edge. A grid of M x M takes the positions as they are. Raises ValueError for a grid without patches, and for
    a config that interpolates with antialiasing.
    """
    if config.interpolate_antialias:
        raise ValueError("config: expected one that interpolates positions without antialiasing")
    check_size("rows", rows, 1)
    check_size("columns", columns, 1)
    stored = config.stored_grid
    if rows == columns == stored:
        return (np.eye(stored, dtype=np.float32),) * 2
    return tuple(_cubic_matrix(stored, new, config.interpolate_offset) for new in (rows, columns))


def _cubic_matrix(old: int, new: int, offset: float) -> np.ndarray:
    """float32 [new, old] (Keys, doi:10.1109/TASSP.1981.1163711, with the slope `CUBIC`)."""
    place = (np.arange(new) + 0.5) * (old / (new + offset)) - 0.5  # [new]
    first = np.floor(place).astype(np.int64) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(place - (first + tap))
        near = ((CUBIC + 2) * distance - (CUBIC + 3)) * distance**2 + 1
        far = CUBIC * (((distance - 5) * distance + 8) * distance - 4)
        weight = np.where(distance <= 1, near, far)
        np.add.at(matrix, (np.arange(new), np.clip(first + tap, 0, old - 1)), weight)
    return matrix.astype(np.float32)
