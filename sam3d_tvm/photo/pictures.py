"""Picture files: which are opened, how large they may be, and how they lie in their file."""

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from sam3d_tvm.photo.arrays import check_is_file, check_sides
from sam3d_tvm.photo.orientation import UPRIGHT
from sam3d_tvm.reading import check_expansion, open_clipped

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")  # closed: Pillow opens others with programs
HEIC = "HEIC"  # read by pillow-heif, the extra "heif"
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")  # behind "ftyp" at the file's start
NARROW_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr")  # Pillow's modes of 8 bits and less
WIDE_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")  # its modes of 16 bits: greyscale, the last in 32 bits

_pillow_limit = threading.Lock()


@contextlib.contextmanager
def opened(path: str | os.PathLike, name: str) -> Iterator[Image.Image]:
    """The picture of a file whose header alone is read. ValueError for what is none of `FORMATS` or cannot be read."""
    formats, start = readable_formats(), start_of(path)
    heic = start[4:8] == b"ftyp" and start[8:] in HEIC_BRANDS
    with contextlib.ExitStack() as files:
        try:
            check_is_file(path)
            with _pillow_without_limit():  # for the header; pixels are read after our own check
                if heic:
                    picture = _heic(path, name)
                else:
                    picture = Image.open(files.enter_context(open_clipped(path)), formats=formats)
                    picture.filename = os.fspath(path)
        except Exception as error:  # Pillow raises errors of many kinds for broken files
            if isinstance(error, ValueError) and str(error).startswith(name):
                raise
            lacks_avif = start[8:] in (b"avif", b"avis") and "AVIF" not in formats
            hint = "; Pillow was built without AVIF" if lacks_avif else ""
            known = ", ".join((*formats, HEIC))
            raise ValueError(f"{name}: expected a picture as {known}, cannot read it: {error}{hint}") from error
        files.enter_context(picture)
        check_expansion(picture, os.path.getsize(path), name)
        yield picture


def start_of(path: str | os.PathLike) -> bytes:
    """The first 12 bytes of a file, or none."""
    if not os.path.isfile(path):
        return b""
    try:
        with open(path, "rb") as file:
            return file.read(12)
    except OSError:
        return b""


def readable_formats() -> tuple[str, ...]:
    """Those of `FORMATS` that this Pillow has."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _heic(path: str | os.PathLike, name: str) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise ValueError(
            f"{name}: expected pillow-heif to be installed for a HEIC picture: pip install 'sam3d-tvm[heif]', or save it as "
            f"JPEG or PNG: {error}"
        ) from error
    return HeifImageFile(Path(path))  # not registered with Pillow, which belongs to all of the process


@contextlib.contextmanager
def _pillow_without_limit():
    """Pillow's limit on the number of pixels lifted: it is lower than `MAX_SIDE` squared, and others may have changed it."""
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def load_pixels(picture: Image.Image, name: str, floats: bool = False) -> None:
    """Reads the pixels of an open picture of a mode that is known here, with floats if asked for."""
    check_sides(*picture.size, name)
    if picture.mode not in NARROW_MODES + WIDE_MODES + (("F",) if floats else ()):
        raise ValueError(f"{name}: expected 8 or 16 bits for each channel, given Pillow's mode {picture.mode!r}")
    try:
        picture.load()
    except Exception as error:  # as above
        raise ValueError(f"{name}: expected a whole picture, cannot read its pixels: {error}") from error


def orientation_of(picture: Image.Image) -> int | None:
    """The orientation, 1 to 8, that the EXIF data of a picture with read pixels says, or None where it says none."""
    try:
        found = picture.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF data says nothing
        return None
    if not isinstance(found, int):
        return None
    return found if 1 <= found <= 8 else UPRIGHT


def has_losses(picture: Image.Image) -> bool:
    """Whether the file of an open picture is of a format that changes values."""
    if picture.format == "WEBP" and getattr(picture, "filename", ""):
        with contextlib.suppress(OSError), open(picture.filename, "rb") as file:
            return b"VP8 " in file.read(1 << 12)
    return picture.format in ("JPEG", "MPO", "AVIF", "HEIF")


def wide_values(picture: Image.Image, name: str) -> np.ndarray:
    """uint16 [H, W] of a picture of `WIDE_MODES`."""
    values = np.asarray(picture)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(f"{name}: expected values of 0 to 65535, given {values.min()} to {values.max()}")
    return values.astype(np.uint16, copy=False)


def bytes_to_read(picture: Image.Image) -> int:
    """Bytes for each pixel that reading an open picture takes at most: in Pillow's memory, and in its decoder's."""
    held = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}.get(picture.mode, 4)
    return held + {"WEBP": 8, "JPEG2000": 12, "AVIF": 4, "HEIF": 4}.get(picture.format, 0)  # as measured
