"""Runs a compiled depth model: a photo -> raw points and a raw mask at its own size.

The network sees a photo as large as the number of tokens allows, and once more cut to whole patches. Both are resized here, as
is what it returns: facts of upstream's code that need no network.
"""

from math import sqrt
from typing import NamedTuple

import numpy as np
from PIL import Image

from sam3d_tvm.checks import check_finite, check_size
from sam3d_tvm.models.dinov2 import DinoV2Config, position_matrices
from sam3d_tvm.models.moge.config import AREA, MogeConfig
from sam3d_tvm.models.moge.focal import half_sides, view_plane
from sam3d_tvm.resize import resized_bilinear
from sparse_ops.deploy.component import Component


class Sizes(NamedTuple):
    """Height and width of the resized photo, and rows and columns of its patches."""

    height: int
    width: int
    rows: int
    columns: int


def sizes_of(height: int, width: int, num_tokens: int, patch: int = 14) -> Sizes:
    """How a photo of `height` x `width` pixels is resized to about `num_tokens` patches.

    Raises ValueError for a photo of which less than one patch would be left along a side: sides that differ by more than
    about `num_tokens` times.
    """
    ratio = sqrt(num_tokens * AREA / (height * width))
    high, wide = int(height * ratio), int(width * ratio)
    if min(high, wide) < patch:
        raise ValueError(
            f"image: expected sides that differ by at most {num_tokens} times, the number of tokens, given {width} x {height} "
            f"pixels, of which {wide} x {high} would be left: less than a patch of {patch}"
        )
    return Sizes(high, wide, high // patch, wide // patch)


class DepthModel:
    """The depth model with its weights, on numpy arrays.

        model = DepthModel(Component.load("artifacts/depth_model"), PRESETS["full"])
        points, mask = model.forward(image, num_tokens=2551)

    `component`: a `MoGeModel` of the same config, for any grid of patches. ValueError for any other.
    """

    def __init__(self, component: Component, config: MogeConfig):
        self.component, self.config = component, config
        self._function = component["forward"]
        encoder = config.encoder
        names = ["image", "along_rows", "along_columns", "span", "u", "v"]
        given = {spec.name: spec.shape for spec in self._function.spec.inputs}
        if list(given) != names:
            raise ValueError(f"component: expected the inputs {', '.join(names)}, given {', '.join(given)}")
        fixed = (3, encoder.patch_size, encoder.patch_size, encoder.stored_grid, encoder.stored_grid)
        found = (*given["image"][::2], given["along_rows"][1], given["along_columns"][1])
        if found != fixed:
            raise ValueError(
                f"component: expected patches [3, {fixed[1]}, {fixed[2]}] and positions of {fixed[3]} x {fixed[4]}, "
                f"given {list(found[:3])} and {found[3]} x {found[4]}"
            )

    def forward(self, image: np.ndarray, num_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """points float32 [H, W, 3], x to the right, y down, z away, before the shift that makes them metric in proportion; and
        mask float32 [H, W], raw: above `config.mask_threshold` where a point is valid.

        image float32 [3, H, W], colours in 0..1; num_tokens: of how many patches the network sees about as many. Raises
        ValueError for another image, values that are not finite, and as `sizes_of`.
        """
        check_image(image)
        check_size("num_tokens", num_tokens, 1)
        height, width = image.shape[1:]
        sizes = sizes_of(height, width, num_tokens, self.config.encoder.patch_size)
        result = self._function(*arguments_of(shrunk(image, sizes), sizes, self.config.encoder))
        raw = resized_bilinear(result["points"], (height, width))
        mask = resized_bilinear(result["mask"][None], (height, width))[0]
        return remapped(raw), mask


def arguments_of(image: np.ndarray, sizes: Sizes, encoder: DinoV2Config) -> tuple[np.ndarray, ...]:
    """What the network takes, for image [3, sizes.height, sizes.width]: see `network_torch.MoGeModel.forward`."""
    patch = encoder.patch_size
    whole = resized_with_antialias(image, (sizes.rows * patch, sizes.columns * patch), Image.Resampling.BILINEAR)
    patches = whole.reshape(3, sizes.rows, patch, sizes.columns, patch)
    return (patches, *position_matrices(encoder, sizes.rows, sizes.columns), *view(sizes.height, sizes.width))


def shrunk(image: np.ndarray, sizes: Sizes) -> np.ndarray:
    """image [3, H, W] -> [3, sizes.height, sizes.width], which may be larger, too."""
    return resized_with_antialias(image, (sizes.height, sizes.width), Image.Resampling.BICUBIC)


def view(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """float32 span [2], u [width], v [height] of a photo of that size: its diagonal reaches from -1 to 1."""
    u, v = view_plane(height, width)
    return np.array(half_sides(height, width), np.float32), u, v


def remapped(raw: np.ndarray) -> np.ndarray:
    """raw float32 [3, H, W] -> points [H, W, 3]: (a, b, c) -> (a e^c, b e^c, e^c). z is above 0."""
    a, b, c = raw
    z = np.exp(c)
    return np.stack([a * z, b * z, z], axis=-1)


def resized_with_antialias(image: np.ndarray, size: tuple[int, int], kernel: Image.Resampling) -> np.ndarray:
    """float32 [C, H, W] -> [C, *size]; the kernel is as wide as a new pixel where that is the larger one, bicubic with a slope
    of -1/2. What overshoots stays."""
    if image.shape[1:] == size:
        return image
    channels = [Image.fromarray(np.ascontiguousarray(channel)).resize(size[::-1], kernel) for channel in image]
    return np.stack([np.asarray(channel) for channel in channels])


def check_image(image: np.ndarray) -> None:
    """ValueError unless image is a photo float32 [3, H, W] of finite values."""
    expected = "float32 [3, H, W] of at least a pixel"
    if not isinstance(image, np.ndarray):
        raise ValueError(f"image: expected a numpy array {expected}, given {type(image).__name__}")
    if image.dtype != np.float32 or image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ValueError(f"image: expected {expected}, given {image.dtype} {list(image.shape)}")
    check_finite("image", image)
