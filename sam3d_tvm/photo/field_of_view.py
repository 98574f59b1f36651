"""The field of view of a photo by the focal length in its EXIF data, as cameras write it.

Two ways lead to it: the focal length of a camera for 35 mm film with the same diagonal field of view, or the focal length of
the lens and how many of the sensor's pixels are in a length. The first is looked for first, as more cameras write it. Neither
knows of pixels that were cut off later.

Source: CIPA DC-008, Exif 3.0, tags FocalLength, FocalLengthIn35mmFilm, FocalPlaneXResolution and those beside them.
"""

import math
import os
from typing import Any

from PIL import ExifTags, Image

from sam3d_tvm.photo.orientation import UPRIGHT, swaps_sides
from sam3d_tvm.photo.pictures import opened, orientation_of

FILM_DIAGONAL = math.hypot(36, 24)  # mm, of a picture on 35 mm film
MILLIMETRES = {2: 25.4, 3: 10.0, 4: 1.0, 5: 0.001}  # of a unit of FocalPlaneResolutionUnit; 2, an inch, where it is not said
SAME_SHAPE = 0.02  # by which the sides in EXIF data may differ from the picture's, as a ratio


def fov_x_of_photo(image: str | os.PathLike | Image.Image) -> float:
    """The horizontal field of view in degrees of a photo as it is seen, turned as its EXIF orientation asks.

    image: a file of a kind that `images.load_image` reads, of which the header is read, or Pillow's image of one.

    Raises ValueError for a file that cannot be read, something else, and a photo whose EXIF data has no focal length, or one
    without the size of its sensor.
    """
    if isinstance(image, Image.Image):
        return _fov_x(image, "image")
    if not isinstance(image, (str, os.PathLike)):
        raise ValueError(f"image: expected a file or a Pillow image, whose EXIF data is read, given {type(image).__name__}")
    name = f"image {str(image)!r}"
    with opened(image, name) as picture:
        return _fov_x(picture, name)


def _fov_x(picture: Image.Image, name: str) -> float:
    try:
        exif = picture.getexif()
        tags = {**exif, **exif.get_ifd(ExifTags.IFD.Exif)}
    except Exception as error:  # Pillow raises errors of many kinds for damaged data
        raise ValueError(f"{name}: expected EXIF data with a focal length, cannot read it: {error}") from error
    swapped = swaps_sides(orientation_of(picture) or UPRIGHT)
    width, height = picture.size
    film = _positive(tags.get(ExifTags.Base.FocalLengthIn35mmFilm))
    if film is not None:
        seen = height if swapped else width
        return _angle(FILM_DIAGONAL * seen / math.hypot(width, height), film)
    focal = _positive(tags.get(ExifTags.Base.FocalLength))
    side = _sensor_side(tags, (width, height), swapped)
    if focal is None or side is None:
        lacking = "none" if focal is None else f"{focal:g} mm without the size of the sensor"
        raise ValueError(
            f"{name}: expected the focal length in its EXIF data, as FocalLengthIn35mmFilm, or as FocalLength with "
            f"FocalPlaneXResolution, given {lacking}; give the field of view in degrees"
        )
    return _angle(side, focal)


def _sensor_side(tags: dict[int, Any], size: tuple[int, int], swapped: bool) -> float | None:
    """Millimetres of the sensor along what is horizontal in the photo as it is seen, or None."""
    # The resolution counts the pixels that the camera wrote, of which a smaller copy of the photo has fewer.
    written = [_positive(tags.get(tag)) for tag in (ExifTags.Base.ExifImageWidth, ExifTags.Base.ExifImageHeight)]
    same = None not in written and abs(written[0] * size[1] / (written[1] * size[0]) - 1) <= SAME_SHAPE
    pixels = (written if same else size)[int(swapped)]
    across, down = ExifTags.Base.FocalPlaneXResolution, ExifTags.Base.FocalPlaneYResolution
    density = _positive(tags.get(down if swapped else across)) or _positive(tags.get(across))
    unit = MILLIMETRES.get(tags.get(ExifTags.Base.FocalPlaneResolutionUnit, 2))
    return None if density is None or unit is None else pixels / density * unit


def _positive(value: Any) -> float | None:
    """A number above 0, or None: 0 is what cameras write where they do not know."""
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return number if 0 < number < math.inf else None


def _angle(side: float, focal: float) -> float:
    return math.degrees(2 * math.atan(side / (2 * focal)))
