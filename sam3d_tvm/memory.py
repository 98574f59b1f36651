"""How much memory each stage of a pipeline takes: weights, which are known, and what grows with tokens and voxels."""

from collections.abc import Mapping
from typing import Any

from sam3d_tvm.checks import check_size
from sam3d_tvm.config import PipelineConfig
from sam3d_tvm.models import MODELS
from sam3d_tvm.photo.images import Picture, memory_of_photo, size_of_photo

TYPICAL_VOXELS = 16_000  # of an object at 64^3
BASE = 640 << 20  # bytes of Python, TVM and numpy with a photo of a few megapixels
FLOAT = 4
# Bytes a pixel of a photo while the images of the models are made of it: it and its mask, and the copies that are turned, cut
# out or made smaller; with a point map also that, in the form it has in its file and by pixels of the photo; with one that the
# depth model makes also the photo in floats, and what becomes of its points.
PHOTO, WITH_POINTS, WITH_DEPTH_MODEL = 12, 40, 72
IMAGE = "image"  # the stage in which that is


def estimate(
    config: PipelineConfig, weights: Mapping[str, int], voxels: int, stage1_only: bool = False, views: int = 1
) -> dict[str, int]:
    """Bytes that each stage takes at its peak, by the name of its model. `weights`: bytes of each model. `views`: photos of the
    object."""

    def numbers(name: str, model: Any) -> int:
        return MODELS[name].memory(model, config, voxels) + (views - 1) * MODELS[name].memory_of_view(model, config)

    return {
        name: BASE + weights.get(name, 0) + FLOAT * numbers(name, model)
        for name, model in config.models.items()
        if MODELS[name].stage == 1 or not stage1_only
    }


def of_photo(image: Picture, mask: Picture | None, has_points: bool, looks: bool = False) -> int:
    """Bytes that the stage `IMAGE` takes at its peak, from the headers of files. `looks`: whether the depth model runs."""
    width, height = size_of_photo(image)
    each = WITH_DEPTH_MODEL if looks else WITH_POINTS if has_points else PHOTO
    return BASE + max(memory_of_photo(image, mask), width * height * each)


def check(found: Mapping[str, int], max_memory: int, of: str) -> None:
    """ValueError with the estimate if a stage is estimated to take more than `max_memory` bytes; `of`: for how many voxels."""
    check_size("max_memory", max_memory, 1)
    worst = max(found, key=found.__getitem__)
    if found[worst] > max_memory:
        reason = "which a photo of this size takes" if worst == IMAGE else f"which {worst} is estimated to take {of}"
        raise ValueError(
            f"max_memory: expected at least {found[worst] / 2**30:.2f} GiB, {reason}, given {max_memory / 2**30:.2f} GiB"
        )
