"""Photos and masks: from files and arrays of many kinds to the one that the pipeline takes, uint8 `[H, W, 4]`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sam3d_tvm.notices import say
from sam3d_tvm.photo import masks
from sam3d_tvm.photo.arrays import ARRAYS, MAX_SIDE, array_kind, as_array, check_sides, read_array
from sam3d_tvm.photo.orientation import UPRIGHT, as_in_file, in_words, swaps_sides, upright
from sam3d_tvm.photo.pictures import WIDE_MODES, bytes_to_read, has_losses, load_pixels, opened, orientation_of, wide_values
from sam3d_tvm.photo.pointmaps import as_pointmap, load_pointmap

__all__ = [
    "MAX_SIDE",
    "Photo",
    "Picture",
    "as_pointmap",
    "as_rgba",
    "check_mask",
    "check_rgba",
    "load_colours",
    "load_image",
    "load_mask",
    "load_photo",
    "load_pointmap",
    "load_rgba",
    "memory_of_photo",
    "split_labels",
]

Picture = str | os.PathLike | np.ndarray | Image.Image
MASKS = ("mask", "masks")  # names of arrays in a .npz or .pt file of several
BAND = 256  # rows of a picture that are taken at a time
GIVE_A_MASK = "pass a mask, or a picture with transparency"


@dataclass(frozen=True, eq=False)
class Photo:
    """A photo with its mask, as both are seen.

    rgba: uint8 `[H, W, 4]`, the mask as alpha channel. orientation: how the file lay, 1 to 8, which has been carried out.
    """

    rgba: np.ndarray
    orientation: int = UPRIGHT

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.rgba.shape[1], self.rgba.shape[0]


def load_photo(image: Picture, mask: Picture | None = None, mask_upright: bool = False) -> Photo:
    """A photo with its mask from files, from arrays, or from Pillow images, which are taken as those in files are.

    image: a file as in `load_image`, or uint8 `[H, W, 3]` or `[H, W, 4]`. mask: a file as in `load_mask`, or an array as
    `masks.coverage_of_array` takes it, in place of an alpha channel.

    A file of a mask without EXIF orientation that belongs to a photo with one was drawn on the photo as it lies in its file, if
    it fits that, and is turned with it; `mask_upright`: it was drawn on the photo as it is seen, where both fit. An array is
    taken to be upright where that fits. What is not plain is said by a `Notice`.

    Raises ValueError for anything else, for a mask of another size, and as `masks.coverage`; without a mask for a photo that
    has no alpha channel, or one that is the same everywhere.
    """
    pixels, orientation, name = _pixels(image, 4 if mask is not None else None)
    if mask is None:
        return Photo(_with_own_mask(pixels, name), orientation)
    found = _fitted(_drawn(mask), (pixels.shape[1], pixels.shape[0]), orientation, mask_upright)
    if isinstance(image, (str, os.PathLike, Image.Image)):  # pixels are our own
        pixels[..., 3] = found
        return Photo(pixels, orientation)
    return Photo(_merged(pixels, found), orientation)


def check_mask(image: Picture, mask: Picture, mask_upright: bool = False) -> None:
    """ValueError for a mask that `load_photo` refuses; of a file of a photo the header alone is read."""
    _fitted(_drawn(mask), *_size_and_orientation(image), mask_upright)


def load_rgba(image_path: str | os.PathLike, mask_path: str | os.PathLike | None = None) -> np.ndarray:
    """A picture with its mask as alpha channel, uint8 `[H, W, 4]`, from files, as `load_photo`."""
    return load_photo(image_path, mask_path).rgba


def as_rgba(image: np.ndarray | Image.Image, mask: np.ndarray | Image.Image | None = None) -> np.ndarray:
    """The same from memory; the array itself where it is that already. ValueError as `load_photo`."""
    for name, value in (("image", image), ("mask", mask)):
        if isinstance(value, (str, os.PathLike)):
            kinds = "uint8 [H, W, 3] or [H, W, 4]" if name == "image" else "an array [H, W]"
            raise ValueError(f"{name}: expected a Pillow image, or {kinds}, given {type(value).__name__}")
    return load_photo(image, mask).rgba


def load_image(path: str | os.PathLike) -> np.ndarray:
    """A picture from a file of `pictures.FORMATS` or HEIC, the first of several: uint8 `[H, W, 3]`, or `[H, W, 4]` with alpha.

    Greyscale, palettes, 1 bit, CMYK and YCbCr become RGB; 16 bits are scaled to 8. A rotation in the EXIF data is carried out.

    Sides reach 16384 pixels (`MAX_SIDE`), and Pillow's lower limit on the number of pixels does not hold here. While it is read
    a picture takes what `memory_of_photo` says, 8 bytes for each pixel as usual RGB or RGBA: 0.5 GB at 8192 pixels a side.

    Raises ValueError for a file that cannot be read as a picture, and for one that is too large, of floats, or beyond 16 bits.
    """
    return _pixels(Path(path), None)[0]


def load_colours(image: Picture) -> np.ndarray:
    """The colours of a photo as it is seen, uint8 `[H, W, 3]`: `load_photo` without its mask."""
    return _pixels(image, 3)[0][..., :3]


def load_mask(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """A mask from a file, uint8 `[H, W]`: 0 outside of the object, 255 inside, between them on a soft edge.

    A picture of any kind that `load_image` reads, turned as its own EXIF data asks: its alpha channel if that varies, else its
    values. Or a file of arrays (.npy, .npz, .pt), of one array or of several with a `mask` or `masks`. By the rule in `masks`.
    `size`: (width, height) that it must have.

    Raises ValueError as `load_image` and `masks.coverage`, and for another size.
    """
    found = _drawn(Path(path))
    values = upright(found.values, found.orientation or UPRIGHT)
    if size is not None:
        _check_same_size((values.shape[1], values.shape[0]), tuple(size), found.name)
    return np.ascontiguousarray(values)


def split_labels(
    mask: Picture, labels: Sequence[int | str] | None = None, image: Picture | None = None, mask_upright: bool = False
) -> list[tuple[int | str, np.ndarray]]:
    """A mask for each object of a label picture: (label, uint8 `[H, W]`) of `labels`, by default of all, ascending.

    mask: a file or an array as in `load_photo`. 0 is the background, and black in coloured pictures, whose labels are colours
    as "ff0000"; index pictures have indices. image: the photo that it belongs to, to which it is fitted as there.

    Raises ValueError as `masks.split_plane`, and for another size than the photo's.
    """
    name, orientation, in_file = _name("mask", mask), None, isinstance(mask, (str, os.PathLike))
    if isinstance(mask, (str, os.PathLike)) and Path(mask).suffix.lower() not in ARRAYS:
        with opened(mask, name) as picture:
            load_pixels(picture, name)
            orientation = orientation_of(picture)
            plane = masks.plane_of_labels(picture, name, has_losses(picture))
    elif isinstance(mask, Image.Image):
        load_pixels(mask, name)
        orientation, in_file = orientation_of(mask), mask.format is not None
        plane = masks.plane_of_labels(mask, name, has_losses(mask))
    else:
        plane = masks.plane_of_labels(read_array(mask, name, MASKS) if in_file else mask, name)
    found = masks.split_plane(plane, name, labels)
    size, turned = (None, UPRIGHT) if image is None else _size_and_orientation(image)
    placed = []
    for label, values in found:
        drawn = _Drawn(values, orientation, in_file, name)
        if size is None:
            values = np.ascontiguousarray(upright(values, orientation or UPRIGHT))
        placed.append((label, values if size is None else _fitted(drawn, size, turned, mask_upright)))
    return placed


def check_rgba(rgba: np.ndarray) -> None:
    """ValueError unless it is uint8 `[H, W, 4]` whose alpha channel is above 0 somewhere."""
    if not isinstance(rgba, np.ndarray) or rgba.dtype != np.uint8 or rgba.ndim != 3 or rgba.shape[2] not in (3, 4):
        raise ValueError(f"image: expected uint8 [H, W, 4], given {array_kind(rgba)}")
    check_sides(rgba.shape[1], rgba.shape[0], "image")
    if rgba.shape[2] == 3:
        raise ValueError(f"mask: expected one, as image has no alpha channel; {GIVE_A_MASK}")
    if not rgba[..., 3].any():
        raise ValueError("mask (the alpha channel of image): expected pixels above 0 where the object is, given an empty mask")


def memory_of_photo(image: Picture, mask: Picture | None = None) -> int:
    """The bytes that `load_photo` takes at its peak, from the headers of files, whose pixels are not read."""
    size, reading, own = _cost(image, "image")
    pixels = size[0] * size[1]
    if mask is None:
        return pixels * (4 + reading + own)
    _, mask_reading, mask_own = _cost(mask, "mask")
    return pixels * (4 + max(reading + own, mask_reading + mask_own + 2))  # its values and what is inside


def size_of_photo(image: Picture) -> tuple[int, int]:
    """Width and height, of a file from its header."""
    return _cost(image, "image")[0]


def _cost(picture: Picture, name: str) -> tuple[tuple[int, int], int, int]:
    """Width and height, and for each pixel the bytes that reading takes and those that are in memory before."""
    if isinstance(picture, Image.Image):
        return picture.size, 4, 0
    if not isinstance(picture, (str, os.PathLike)):
        return _array(picture).shape[1::-1] if name == "image" else (0, 0), 0, 0
    if Path(picture).suffix.lower() in ARRAYS:
        return (0, 0), 8, 0
    with opened(picture, _name(name, picture)) as file:
        check_sides(*file.size, _name(name, picture))
        return file.size, bytes_to_read(file), 4 if name == "mask" and file.mode not in ("1", "L", "P") else 0


@dataclass(frozen=True, eq=False)
class _Drawn:
    """A mask as its pixels lie: uint8 [H, W]; its own EXIF orientation, if it has one; whether it comes from a file."""

    values: np.ndarray
    orientation: int | None
    in_file: bool
    name: str

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[1], self.values.shape[0]


def _name(argument: str, value) -> str:
    return f"{argument} {str(value)!r}" if isinstance(value, (str, os.PathLike)) else argument


def _drawn(mask: Picture) -> _Drawn:
    name = _name("mask", mask)
    if isinstance(mask, (str, os.PathLike)):
        if Path(mask).suffix.lower() in ARRAYS:
            return _Drawn(masks.coverage_of_array(read_array(mask, name, MASKS), name), None, True, name)
        with opened(mask, name) as picture:
            return _of_picture(picture, name, True)
    if isinstance(mask, Image.Image):
        return _of_picture(mask, name, mask.format is not None)
    return _Drawn(masks.coverage_of_array(mask, name), None, False, name)


def _of_picture(picture: Image.Image, name: str, in_file: bool) -> _Drawn:
    load_pixels(picture, name)
    return _Drawn(masks.coverage_of_picture(picture, name, has_losses(picture)), orientation_of(picture), in_file, name)


def _fitted(mask: _Drawn, size: tuple[int, int], orientation: int, mask_upright: bool) -> np.ndarray:
    """uint8 [H, W] of a mask as a photo is seen, which is `size` then, and lay in its file as `orientation` says."""
    if mask.orientation is not None or orientation == UPRIGHT:
        values = upright(mask.values, mask.orientation or UPRIGHT)
        _check_same_size((values.shape[1], values.shape[0]), size, mask.name)
        return values
    raw = size[::-1] if swaps_sides(orientation) else size
    both = raw == size
    if mask.size == raw and (not both or (mask.in_file and not mask_upright)):
        if mask_upright:
            raise ValueError(
                f"{mask.name}: expected {size[0]} x {size[1]} pixels, as the photo has upright, given {raw[0]} x {raw[1]}, as "
                "its file has: leave out --mask-upright (mask_upright)"
            )
        why = "and its own file says no orientation; if it was drawn on the upright photo, say --mask-upright (mask_upright)"
        say(
            f"{mask.name}: {in_words(orientation)} as the photo is by its EXIF data, since it fits the photo as it lies in the "
            f"file, {raw[0]} x {raw[1]} pixels{f', {why}' if both else ''}"
        )
        return upright(mask.values, orientation)
    turned = "" if both else f", or {raw[0]} x {raw[1]} before its EXIF data turns it"
    _check_same_size(mask.size, size, mask.name, turned)
    return mask.values


def _check_same_size(given: tuple[int, int], size: tuple[int, int], name: str, turned: str = "") -> None:
    if given == size:
        return
    hint = ""
    if abs(given[0] * size[1] - given[1] * size[0]) <= max(*given, *size):
        hint = "; resize it by the nearest pixel"
    elif given == size[::-1]:
        hint = "; it seems to be turned by 90 degrees, as by EXIF data that the image has lost"
    raise ValueError(
        f"{name}: expected {size[0]} x {size[1]} pixels, as the image has{turned}, given {given[0]} x {given[1]}{hint}"
    )


def _size_and_orientation(image: Picture) -> tuple[tuple[int, int], int]:
    """Width and height of a photo as it is seen, and how its file lies."""
    if isinstance(image, (str, os.PathLike)):
        with opened(image, _name("image", image)) as picture:
            check_sides(*picture.size, _name("image", image))
            size, orientation = picture.size, orientation_of(picture) or UPRIGHT
    elif isinstance(image, Image.Image):
        size, orientation = image.size, orientation_of(image) or UPRIGHT
    else:
        image = _array(image)
        size, orientation = (image.shape[1], image.shape[0]), UPRIGHT
    return size[::-1] if swaps_sides(orientation) else size, orientation


def _pixels(image: Picture, channels: int | None) -> tuple[np.ndarray, int, str]:
    """uint8 [H, W, 3 or 4] as it is seen, with `channels` or as many as it has; its EXIF orientation; what errors call it."""
    name = _name("image", image)
    if isinstance(image, (str, os.PathLike)):
        with opened(image, name) as picture:
            return *_colours(picture, name, channels), name
    if isinstance(image, Image.Image):
        return *_colours(image, name, channels), name
    return _array(image), UPRIGHT, name


def _array(image) -> np.ndarray:
    image = as_array(image, "image")
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (3, 4):
        raise ValueError(f"image: expected a Pillow image, or uint8 [H, W, 3] or [H, W, 4], given {array_kind(image)}")
    check_sides(image.shape[1], image.shape[0], "image")
    return image


def _colours(picture: Image.Image, name: str, channels: int | None) -> tuple[np.ndarray, int]:
    """uint8 [H, W, 3 or 4] of an open picture as it is seen, in bands beside what Pillow holds; its EXIF orientation."""
    load_pixels(picture, name)
    orientation = orientation_of(picture) or UPRIGHT
    width, height = picture.size
    mode = "RGBA" if picture.has_transparency_data else "RGB"
    wide = picture.mode in WIDE_MODES
    depth = channels or len(mode)
    pixels = np.empty((*((width, height) if swaps_sides(orientation) else (height, width)), depth), np.uint8)
    lying = as_in_file(pixels, orientation)
    if wide:
        values = wide_values(picture, name)
    for top in range(0, height, BAND):
        bottom = min(top + BAND, height)
        if wide:
            band = masks.eight_bits(values[top:bottom], 65535)[..., None]
        else:
            part = picture.crop((0, top, width, bottom))
            band = np.asarray(part if part.mode == mode else part.convert(mode))[..., :depth]
        lying[top:bottom, :, : max(band.shape[2], 3)] = band
    return pixels, orientation


def _with_own_mask(pixels: np.ndarray, name: str) -> np.ndarray:
    """uint8 [H, W, 4] of pixels whose alpha channel is the mask, by the rule; the pixels themselves where they are that."""
    if pixels.shape[2] == 3:
        raise ValueError(f"mask: expected one, as {name} has no alpha channel; {GIVE_A_MASK}")
    alpha = pixels[..., 3]
    least, most = int(alpha.min()), int(alpha.max())
    if least == most > 0 or least > masks.FULL // 2:
        opaque = "equally transparent everywhere" if least == most < masks.FULL else "opaque everywhere"
        values = most if least == most else f"{least} to {most}"
        raise ValueError(
            f"mask: expected one, as {name} is {opaque}: its alpha channel is {values} in all pixels; "
            "pass a mask as a second picture, or a picture that is transparent outside of the object"
        )
    found = masks.coverage(masks.Plane(alpha, masks.FULL, alpha=True), f"mask (the alpha channel of {name})")
    return pixels if found is alpha else _merged(pixels, found)


def _merged(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 4] of an image [H, W, 3] or [H, W, 4] and a mask [H, W]."""
    rgba = np.empty((*mask.shape, 4), np.uint8)
    for channel, plane in enumerate((*np.moveaxis(image[..., :3], 2, 0), mask)):  # np.dstack takes five times as long
        rgba[..., channel] = plane
    return rgba
