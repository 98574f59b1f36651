"""Photos, masks and point maps: from files and arrays of many kinds to the few that the pipeline takes."""

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

MAX_SIDE = 16384  # pixels
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")  # closed: Pillow opens others with other programs
NARROW_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")  # Pillow's modes of 8 bits and less
WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # its modes of 16 bits: greyscale, the last in 32 bits
POINTMAP = "pointmap"  # the array that is read from a .npz file which holds several

_pillow_limit = threading.Lock()


def load_image(path: str | os.PathLike) -> np.ndarray:
    """A picture from a file of `FORMATS`, the first one of several: uint8 `[H, W, 4]` if it has transparency, or `[H, W, 3]`.

    Greyscale, palettes, 1 bit, CMYK and YCbCr become RGB; 16 bits are scaled to 8. A rotation in the EXIF data is carried out.

    Sides reach 16384 pixels (`MAX_SIDE`), and Pillow's lower limit on the number of pixels does not hold here. While it is read
    a picture takes up to 20 bytes for each pixel, and 12 as usual RGB or RGBA: 0.8 GB at 8192 pixels a side.

    Raises ValueError for a file that cannot be read as a picture, and for one that is too large, of floats, or beyond 16 bits.
    """
    return _read_picture(path, f"image {str(path)!r}", _colours)


def load_mask(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask from a file, uint8 `[H, W]`: 0 outside of the object, 255 inside, between them on a soft edge.

    A picture of any kind that `load_image` reads, upright as there: its alpha channel if that varies, else its luminance.
    Or a .npy file, as an array in `as_rgba`. Every pixel above 0 is in the box around the object, so a format without loss
    is best. `size`: (width, height) that it must have.

    Raises ValueError as `load_image`, and for another size, an empty mask, and one without values above 1.
    """
    name = f"mask {str(path)!r}"
    if Path(path).suffix == ".npy":
        mask = _mask_of_array(_read_array(path, name), name)
    else:
        mask = _read_picture(path, name, _coverage)
    _check_mask(mask, name)
    if size is not None:
        _check_same_size(mask, size, name)
    return mask


def load_rgba(image_path: str | os.PathLike, mask_path: str | os.PathLike | None = None) -> np.ndarray:
    """A picture with its mask as alpha channel, uint8 `[H, W, 4]`: that of the file, or of a second one, which replaces it.

    Raises ValueError as `load_image` and `load_mask`, and for a picture without alpha channel where there is no second file.
    """
    image = load_image(image_path)
    mask = None if mask_path is None else load_mask(mask_path, (image.shape[1], image.shape[0]))
    return _merged(image, mask, f"image {str(image_path)!r}")


def as_rgba(image: np.ndarray | Image.Image, mask: np.ndarray | Image.Image | None = None) -> np.ndarray:
    """A picture with its mask as alpha channel, uint8 `[H, W, 4]`, from memory; the array itself where it is that already.

    image: uint8 `[H, W, 3]` or `[H, W, 4]`. mask: bool or uint8 `[H, W]`, in place of an alpha channel. Both may be Pillow
    images, which are taken as those in files are.

    Raises ValueError for anything else, and as `load_rgba`.
    """
    if isinstance(image, Image.Image):
        image = _colours(image, "image")
    elif not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(f"image: expected a Pillow image, or uint8 [H, W, 3] or [H, W, 4], given {array_kind(image)}")
    _check_sides(image.shape[1], image.shape[0], "image")
    if mask is not None:
        mask = _coverage(mask, "mask") if isinstance(mask, Image.Image) else _mask_of_array(mask, "mask")
        _check_mask(mask, "mask")
        _check_same_size(mask, (image.shape[1], image.shape[0]), "mask")
    return _merged(image, mask, "image")


def load_pointmap(path: str | os.PathLike) -> np.ndarray:
    """A point map, float32 `[3, H, W]`, from a .npy file, or a .npz file of one array or of several with a `pointmap`.

    It holds a point of the scene for each pixel of a picture, from which its own number of pixels may differ, in the axes of
    PyTorch3D's cameras: x to the left, y up, z away from the viewer. Pixels without a point are NaN or infinite.

    Raises ValueError for a file that cannot be read, or holds pickled objects, and as `as_pointmap`.
    """
    name = f"pointmap {str(path)!r}"
    return as_pointmap(_read_array(path, name), name)


def as_pointmap(points: np.ndarray, name: str = "pointmap") -> np.ndarray:
    """Floats `[3, H, W]` or `[H, W, 3]` as float32 `[3, H, W]`, the array itself where it is that already.

    `name` is what errors call it. Raises ValueError for anything else, and for an array of both shapes at once.
    """
    if not isinstance(points, np.ndarray) or points.dtype.kind != "f" or points.ndim != 3 or 3 not in points.shape[::2]:
        raise ValueError(f"{name}: expected floats [3, H, W] or [H, W, 3], given {array_kind(points)}")
    if points.shape[0] == points.shape[2]:
        raise ValueError(f"{name}: expected either [3, H, W] or [H, W, 3], given {list(points.shape)}, which may be both")
    if points.shape[2] == 3:
        points = points.transpose(2, 0, 1)
    _check_sides(points.shape[2], points.shape[1], name)
    with np.errstate(over="ignore"):  # beyond float32: infinite, which is no point
        return np.ascontiguousarray(points, np.float32)


def _read_picture(path: str | os.PathLike, name: str, convert: Callable[[Image.Image, str], np.ndarray]) -> np.ndarray:
    try:
        with _pillow_without_limit():  # for the header; pixels are read after our own check
            picture = Image.open(path, formats=FORMATS)
    except Exception as error:  # Pillow raises errors of many kinds for broken files
        raise ValueError(f"{name}: expected a picture as {', '.join(FORMATS)}, cannot read it: {error}") from error
    with picture:
        return convert(picture, name)


@contextlib.contextmanager
def _pillow_without_limit():
    """Pillow's limit on the number of pixels lifted: it is lower than `MAX_SIDE` squared, and others may have changed it."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _upright(picture: Image.Image, name: str) -> Image.Image:
    """A picture of a mode that is known here, with its pixels read, and rotated as its EXIF data asks."""
    _check_sides(*picture.size, name)
    if picture.mode not in NARROW_MODES + WIDE_MODES:
        raise ValueError(f"{name}: expected 8 or 16 bits for each channel, given Pillow's mode {picture.mode!r}")
    try:
        picture.load()
        if picture.getexif().get(ExifTags.Base.Orientation, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # as above
        raise ValueError(f"{name}: expected a whole picture, cannot read its pixels: {error}") from error
    return picture


def _colours(picture: Image.Image, name: str) -> np.ndarray:
    """uint8 [H, W, 3], or [H, W, 4] with transparency."""
    picture = _upright(picture, name)
    if picture.mode in WIDE_MODES:
        return np.repeat(_eight_bits(picture, name)[..., None], 3, axis=2)
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    return np.asarray(picture if picture.mode == mode else picture.convert(mode))  # it would copy


def _coverage(picture: Image.Image, name: str) -> np.ndarray:
    """uint8 [H, W]: the alpha channel if it varies, else the luminance."""
    picture = _upright(picture, name)
    if picture.mode in WIDE_MODES:
        return _eight_bits(picture, name)
    if picture.has_transparency_data:
        alpha = picture.convert("RGBA").getchannel("A")
        least, most = alpha.getextrema()
        if least != most:
            return np.asarray(alpha)
    return np.asarray(picture.convert("RGB").convert("L"))


def _eight_bits(picture: Image.Image, name: str) -> np.ndarray:
    """uint8 [H, W] of a picture of 16 bits: 65535 becomes 255. Pillow would clip."""
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name}: expected values of 0 to 65535, given {values.min()} to {values.max()}")
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _read_array(path: str | os.PathLike, name: str) -> np.ndarray:
    try:
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            return file
        with file:
            names = file.files
            wanted = names[0] if len(names) == 1 else POINTMAP
            if wanted in names:
                return file[wanted]
    except Exception as error:  # numpy and zipfile raise errors of many kinds for broken files
        raise ValueError(f"{name}: expected an array in a .npy or .npz file, cannot read it: {error}") from error
    raise ValueError(f"{name}: expected one array, or one called {POINTMAP!r}, given {', '.join(names) or 'none'}")


def _mask_of_array(mask: np.ndarray, name: str) -> np.ndarray:
    """uint8 [H, W] of an array that is this, or bool."""
    if not isinstance(mask, np.ndarray) or mask.dtype not in (np.bool_, np.uint8) or mask.ndim != 2:
        raise ValueError(f"{name}: expected bool or uint8 [H, W], given {array_kind(mask)}")
    return mask if mask.dtype == np.uint8 else mask * np.uint8(255)


def _merged(image: np.ndarray, mask: np.ndarray | None, name: str) -> np.ndarray:
    """uint8 [H, W, 4] of an image [H, W, 3] or [H, W, 4] and a mask [H, W] that is checked."""
    if mask is not None:
        rgba = np.empty((*mask.shape, 4), np.uint8)
        for channel, plane in enumerate((*np.moveaxis(image[..., :3], 2, 0), mask)):  # np.dstack takes five times as long
            rgba[..., channel] = plane
        return rgba
    if image.shape[2] == 3:
        raise ValueError(f"mask: expected one, as {name} has no alpha channel; pass a mask, or a picture with transparency")
    _check_mask(image[..., 3], f"mask (the alpha channel of {name})")
    return image


def _check_sides(width: int, height: int, name: str) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"{name}: expected sides of 1 to {MAX_SIDE} pixels, given {width} x {height}")


def _check_mask(mask: np.ndarray, name: str) -> None:
    most = mask.max(initial=0)
    if most == 0:
        raise ValueError(f"{name}: expected pixels above 0 where the object is, given an empty mask")
    if most == 1:  # a mask of 0 and 1, taken as almost transparent, would give a result that looks like a bad model
        raise ValueError(f"{name}: expected values of 0 to 255, given 0 and 1; multiply by 255, or pass a bool array")


def _check_same_size(mask: np.ndarray, size: tuple[int, int], name: str) -> None:
    height, width = mask.shape
    if (width, height) != tuple(size):
        raise ValueError(f"{name}: expected {size[0]} x {size[1]} pixels, as the image has, given {width} x {height}")


def array_kind(value) -> str:
    """Dtype and shape of an array, or the type of something else: for errors."""
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, np.ndarray) else type(value).__name__
