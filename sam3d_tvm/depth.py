"""The depth model on a photo: its point map for the pipeline, and alone, as files for other programs.

eye = DepthEstimator.from_checkpoint("checkpoints/hf")        # compiles once; needs torch that once
found = eye("photo.jpg")
found.points, found.intrinsics                                # see `moge.infer.DepthMap`
save_depth("out", found, photo)
"""

import numpy as np

from sam3d_tvm.models.moge.infer import DepthMap, check_fov, infer
from sam3d_tvm.photo.field_of_view import fov_x_of_photo
from sam3d_tvm.photo.images import Picture
from sam3d_tvm.photo.pointmaps import PointMap

EXIF = "exif"  # a field of view: that of the photo's EXIF data
FULL = 255  # what stands for 1 in a photo
_FRACTIONS = (np.arange(FULL + 1) / FULL).astype(np.float32)  # divided in float64


def check_view(fov: float | str | None) -> None:
    """ValueError unless a field of view is an angle in degrees between 0 and 180, "exif", or None."""
    if fov != EXIF:
        try:
            check_fov(fov)
        except ValueError as error:
            raise ValueError(f"fov: expected degrees above 0 and below 180, or {EXIF}, given {fov!r}") from error


def fov_of(fov: float | str | None, image: Picture) -> float | None:
    """The angle across a photo as it is seen, in degrees; None if it is to be found by the model. ValueError as `check_view`,
    and as `fov_x_of_photo` where the EXIF data does not say."""
    check_view(fov)
    return fov_x_of_photo(image) if fov == EXIF else fov


def look(model, rgb: np.ndarray, fov_x: float | None, resolution_level: float = 9) -> DepthMap:
    """What `model`, a `moge.run.DepthModel`, makes of a photo uint8 [H, W, 3 or 4], of whose pixels the colours alone count:
    points where the model puts them, as SAM-3D-Objects takes them."""
    image = np.stack([_FRACTIONS[rgb[..., channel]] for channel in range(3)])
    return infer(model, image, fov_x=fov_x, resolution_level=resolution_level, force_projection=False)


def point_map(model, rgb: np.ndarray, fov_x: float | None) -> PointMap:
    """The same as the pipeline takes it."""
    found = look(model, rgb, fov_x)
    return PointMap(found.pointmap, found.intrinsics.astype(np.float64))
