"""Photos, masks and point maps of every kind: what each becomes, and what is said of those that cannot be taken."""

import os
import struct
import subprocess
import sys
import zlib
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from sam3d_tvm.photo.images import MAX_SIDE, as_pointmap, as_rgba, load_image, load_mask, load_pointmap, load_rgba
from sam3d_tvm.photo.preprocess import preprocess

HEIGHT, WIDTH = 12, 20
ORIENTATION = 0x0112  # the EXIF tag
RNG = np.random.default_rng(0)
GREY = RNG.integers(2, 256, (HEIGHT, WIDTH), dtype=np.uint8)
COLOURS = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
INSIDE = np.zeros((HEIGHT, WIDTH), bool)
INSIDE[3:9, 5:14] = True
MASK = np.where(INSIDE, GREY, 0).astype(np.uint8)
RGBA = np.dstack([COLOURS, MASK])


def three(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def saved(path, array_or_picture, **options):
    picture = array_or_picture if isinstance(array_or_picture, Image.Image) else Image.fromarray(array_or_picture)
    picture.save(path, **options)
    return path


def palette():
    """A picture with 4 colours of its own, and those colours [4, 3]."""
    colours = np.uint8([[255, 0, 0], [0, 200, 0], [1, 2, 3], [90, 80, 70]])
    picture = Image.fromarray(GREY % 4).convert("P")
    picture.putpalette(colours.tobytes())
    return picture, colours


# Photos


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm", "webp"])
def test_rgb(tmp_path, suffix):
    path = saved(tmp_path / f"photo.{suffix}", COLOURS, **({"lossless": True} if suffix == "webp" else {}))
    assert np.array_equal(load_image(path), COLOURS)


def test_rgba_is_a_photo_with_its_mask(tmp_path):
    path = saved(tmp_path / "photo.png", RGBA)
    assert np.array_equal(load_image(path), RGBA) and np.array_equal(load_rgba(path), RGBA)


def test_a_second_file_replaces_the_alpha_channel(tmp_path):
    photo, mask = saved(tmp_path / "photo.png", RGBA), saved(tmp_path / "mask.png", 255 - MASK)
    assert np.array_equal(load_rgba(photo, mask), np.dstack([COLOURS, 255 - MASK]))


def test_greyscale(tmp_path):
    assert np.array_equal(load_image(saved(tmp_path / "photo.png", GREY)), three(GREY))


def test_greyscale_with_alpha(tmp_path):
    picture = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(MASK)])
    assert np.array_equal(load_image(saved(tmp_path / "photo.png", picture)), np.dstack([three(GREY), MASK]))


def test_palette(tmp_path):
    picture, colours = palette()
    assert np.array_equal(load_image(saved(tmp_path / "photo.png", picture)), colours[GREY % 4])
    with_transparency = load_image(saved(tmp_path / "clear.png", picture, transparency=2))
    assert np.array_equal(with_transparency, np.dstack([colours[GREY % 4], np.where(GREY % 4 == 2, 0, 255)]))


def test_one_bit(tmp_path):
    assert np.array_equal(load_image(saved(tmp_path / "photo.png", INSIDE)), three(INSIDE * np.uint8(255)))


@pytest.mark.parametrize("suffix", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_divided_not_clipped(tmp_path, suffix):
    path = saved(tmp_path / f"photo.{suffix}", GREY.astype(np.uint16) * 257 - 100)  # 257 * 255 = 65535
    assert np.array_equal(load_image(path), three(GREY))
    mask = np.where(INSIDE, GREY.astype(np.uint16) * 257 - 100, 0).astype(np.uint16)
    assert np.array_equal(load_mask(saved(tmp_path / f"mask.{suffix}", mask)), MASK)


def test_sixteen_bits_reach_all_of_eight(tmp_path):
    path = saved(tmp_path / "photo.png", np.uint16([[0, 128, 129, 65406, 65407, 65535]]))
    assert load_image(path)[0, :, 0].tolist() == [0, 0, 1, 254, 255, 255]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_jpeg_of_other_colours(tmp_path, mode):
    smooth = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    found = load_image(saved(tmp_path / "photo.jpg", Image.fromarray(smooth).convert(mode), quality=100))
    assert np.abs(found.astype(int) - smooth).max() <= 3  # what two conversions of colours in 8 bits cost


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_of_photos_and_of_masks(tmp_path, orientation):
    """Rows and columns are first flipped, then swapped, as the EXIF standard names the place of the first row and column."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation

    def upright(array):
        flips = {1: [], 2: [1], 3: [0, 1], 4: [0], 5: [], 6: [0], 7: [0, 1], 8: [1]}[orientation]
        array = np.flip(array, flips)
        return array.swapaxes(0, 1) if orientation > 4 else array

    photo, mask = saved(tmp_path / "photo.png", COLOURS, exif=exif), saved(tmp_path / "mask.png", MASK, exif=exif)
    assert np.array_equal(load_rgba(photo, mask), np.dstack([upright(COLOURS), upright(MASK)]))
    with Image.open(photo) as picture:  # the same from memory, and it is left as it was
        assert np.array_equal(as_rgba(picture, upright(MASK))[..., :3], upright(COLOURS))
        assert picture.getexif()[ORIENTATION] == orientation
    wide = saved(tmp_path / "wide.png", MASK.astype(np.uint16) * 257, exif=exif)
    assert np.array_equal(load_mask(wide), upright(MASK)) and load_mask(wide).flags.c_contiguous


def test_the_first_picture_of_several(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(COLOURS).save(path, save_all=True, append_images=[Image.fromarray(255 - COLOURS)])
    assert np.array_equal(load_image(path), COLOURS)


def test_the_photo_of_the_demo():
    data = resources.files("sam3d_tvm") / "data"
    rgba = load_rgba(data / "coffee.png", data / "coffee_mask.png")
    assert rgba.shape == (400, 600, 4) and set(np.unique(rgba[..., 3])) == {0, 255}
    assert rgba[100, 290, :3].sum() > rgba[20, 20, :3].sum() and rgba[100, 290, 3] == 255  # coffee, and a dark corner


def test_8192_pixels_a_side(tmp_path):
    """In a process of its own, whose memory is measured: below 16 bytes for each pixel in all."""
    photo = saved(tmp_path / "photo.jpg", Image.new("RGB", (8192, 8192), (255, 255, 255)))
    mask = Image.new("1", (8192, 8192))
    mask.paste(1, (1000, 1000, 7000, 7000))
    script = (
        "import resource, sys\n"
        "from sam3d_tvm.photo.images import load_rgba\n"
        "from sam3d_tvm.photo.preprocess import preprocess\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "found = preprocess(load_rgba(*sys.argv[1:]), size=56).slat\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print((after - before) * 1024 / 8192**2, found['mask'].mean(), found['image'][0, :, 28, 28].tolist())\n"
    )
    command = [sys.executable, "-c", script, photo, saved(tmp_path / "mask.png", mask)]
    bytes_per_pixel, share, colour = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split(" ", 2)
    assert float(bytes_per_pixel) < 16
    assert abs(float(share) - (6000 / 7198) ** 2) < 4 / 56  # an edge falls on a pixel
    assert colour.strip() == "[1.0, 1.0, 1.0]"


def test_sizes_are_limited_here_and_not_by_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert np.array_equal(load_image(saved(tmp_path / "photo.png", COLOURS)), COLOURS)
    assert Image.MAX_IMAGE_PIXELS == 10
    long = saved(tmp_path / "long.png", np.zeros((1, MAX_SIDE + 1), np.uint8))
    for load in (load_image, load_mask):
        with pytest.raises(ValueError, match=r"long.png': expected sides of 1 to 16384 pixels, given 16385 x 1"):
            load(long)


# Masks


@pytest.mark.parametrize(
    ("name", "mask", "expected"),
    [
        ("grey.png", MASK, MASK),
        ("rgb.png", three(MASK), MASK),
        ("bool.png", INSIDE, INSIDE * np.uint8(255)),
        ("alpha.png", RGBA, MASK),
        ("opaque.png", np.dstack([three(MASK), np.full_like(MASK, 255)]), MASK),
        ("red.png", np.where(INSIDE[..., None], np.uint8([255, 0, 0]), 0).astype(np.uint8), INSIDE * np.uint8(255)),
    ],
)
def test_pictures_as_masks(tmp_path, name, mask, expected):
    assert np.array_equal(load_mask(saved(tmp_path / name, mask), (WIDTH, HEIGHT)), expected)


def test_a_palette_as_mask(tmp_path):
    picture = Image.fromarray(INSIDE.astype(np.uint8)).convert("P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    assert np.array_equal(load_mask(saved(tmp_path / "mask.png", picture)), INSIDE * np.uint8(255))
    assert np.array_equal(load_mask(saved(tmp_path / "clear.png", picture, transparency=0)), INSIDE * np.uint8(255))


@pytest.mark.parametrize(("mask", "expected"), [(INSIDE, INSIDE * np.uint8(255)), (MASK, MASK)])
def test_arrays_as_masks(tmp_path, mask, expected):
    np.save(tmp_path / "mask.npy", mask)
    assert np.array_equal(load_mask(tmp_path / "mask.npy", (WIDTH, HEIGHT)), expected)
    assert np.array_equal(as_rgba(COLOURS, mask), np.dstack([COLOURS, expected]))


def test_a_mask_of_one_pixel(tmp_path):
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[4, 7] = 255
    rgba = load_rgba(saved(tmp_path / "photo.png", COLOURS), saved(tmp_path / "mask.png", mask))
    inputs = preprocess(rgba, size=2).slat  # the crop's own size: the pixel, and three neighbours
    assert np.array_equal(inputs["mask"][0, 0], [[0, 0], [0, 1]])
    assert np.array_equal(inputs["image"][0], COLOURS[3:5, 6:8].transpose(2, 0, 1) / np.float32(255))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((HEIGHT, WIDTH), np.uint8), "expected pixels above 0 where the object is, given an empty mask"),
        (COLOURS, "expected black outside of the object and one colour inside, given 240 colours: #"),
        (MASK[:, :-2], "expected 20 x 12 pixels, as the image has, given 18 x 12"),
    ],
)
def test_masks_that_are_refused(tmp_path, mask, message):
    photo, path = saved(tmp_path / "photo.png", COLOURS), saved(tmp_path / "mask.png", mask)
    np.save(tmp_path / "mask.npy", mask)
    for given_path in (path, tmp_path / "mask.npy"):
        with pytest.raises(ValueError, match=rf"mask '.*{given_path.name}': {message}"):
            load_rgba(photo, given_path)
    for given_mask in (mask, Image.fromarray(mask)):
        with pytest.raises(ValueError, match=f"mask: {message}"):
            as_rgba(COLOURS, given_mask)


def test_a_photo_without_a_mask(tmp_path):
    path = saved(tmp_path / "photo.png", COLOURS)
    with pytest.raises(ValueError, match=r"mask: expected one, as image '.*photo.png' has no alpha channel; pass a mask"):
        load_rgba(path)
    with pytest.raises(ValueError, match=r"mask: expected one, as image has no alpha channel"):
        as_rgba(COLOURS)
    with pytest.raises(ValueError, match=r"mask \(the alpha channel of image '.*clear.png'\): expected pixels above 0"):
        load_rgba(saved(tmp_path / "clear.png", np.dstack([COLOURS, MASK * 0])))


# Files that are none


def broken(folder, kind):
    whole = saved(folder / "whole.png", RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).read_bytes()
    content = {
        "truncated": whole[: len(whole) // 2],
        "header": whole[:30],
        "empty": b"",
        "text": b"not a picture",
        "broken": None,
    }
    path = folder / f"{kind}.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "checksum":
        path.write_bytes(whole[:100] + bytes([whole[100] ^ 255]) + whole[101:])
    elif kind != "missing":
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize("kind", ["truncated", "header", "empty", "text", "folder", "checksum", "missing"])
@pytest.mark.parametrize(("load", "name"), [(load_image, "image"), (load_mask, "mask")])
def test_files_that_cannot_be_read(tmp_path, kind, load, name):
    path = broken(tmp_path, kind)
    with pytest.raises(ValueError, match=rf"{name} '.*{kind}.png': expected a (picture|whole picture)\b.*cannot read it"):
        load(path)


def test_a_header_that_promises_more_than_its_file_holds(tmp_path):
    rows = zlib.compress(bytes(1 + 3 * 16384))
    for name, size in (("few.png", rows), ("none.png", b"")):
        header = struct.pack(">IIBBBBB", 16384, 16384, 8, 2, 0, 0, 0)
        parts = [(b"IHDR", header), (b"IDAT", size), (b"IEND", b"")]
        chunks = [
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
        ]
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))
        for load in (load_image, load_mask):
            with pytest.raises(
                ValueError, match=rf"{name}': expected pixels that \d+ bytes can hold, given a header of 16384 x"
            ):
                load(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_pipes_are_not_waited_for(tmp_path):
    for name in ("photo.png", "points.npy", "points.pt"):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ValueError, match="cannot read it"):
            (load_image if name == "photo.png" else load_pointmap)(tmp_path / name)


def test_formats_that_other_programs_would_read_are_not_opened(tmp_path):
    """Pillow gives PostScript to Ghostscript."""
    path = saved(tmp_path / "photo.eps", COLOURS)
    with pytest.raises(ValueError, match=r"photo.eps': expected a picture as PNG, JPEG, .*, cannot read it"):
        load_image(path)


def test_floats_are_no_picture(tmp_path):
    with pytest.raises(ValueError, match=r"image '.*': expected 8 or 16 bits for each channel, given Pillow's mode 'F'"):
        load_image(saved(tmp_path / "photo.tiff", GREY.astype(np.float32)))
    with pytest.raises(ValueError, match=r"image '.*': expected values of 0 to 65535, given -1 to 70000"):
        load_image(saved(tmp_path / "photo.tiff", np.int32([[-1, 70000]])))


# Arrays


def test_pillow_images_are_taken_as_those_in_files(tmp_path):
    picture, colours = palette()
    assert np.array_equal(as_rgba(picture, Image.fromarray(MASK)), np.dstack([colours[GREY % 4], MASK]))
    assert np.array_equal(as_rgba(Image.fromarray(RGBA)), RGBA)
    with (
        Image.open(broken(tmp_path, "truncated")) as file,
        pytest.raises(ValueError, match="image: expected a whole picture"),
    ):
        as_rgba(file, INSIDE)


def test_an_array_that_is_right_is_not_copied():
    assert as_rgba(RGBA) is RGBA


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (COLOURS.astype(np.float32), INSIDE, r"image: expected .*, given float32 \[12, 20, 3\]"),
        (GREY, INSIDE, r"image: expected .*, given uint8 \[12, 20\]"),
        ("photo.png", INSIDE, "image: expected a Pillow image, or uint8 .*, given str"),
        (COLOURS, "mask.png", r"mask: expected a Pillow image, or an array \[H, W\], given str"),
        (COLOURS[:0], INSIDE, "image: expected sides of 1 to 16384 pixels, given 20 x 0"),
        (COLOURS, INSIDE.astype(str), r"mask: expected bools, integers or floats \[H, W\], .*, given <U5 \[12, 20\]"),
        (COLOURS, [[1]], r"mask: expected bools, integers or floats \[H, W\], .*, given list"),
    ],
)
def test_arrays_that_are_refused(image, mask, message):
    with pytest.raises(ValueError, match=message):
        as_rgba(image, mask)


# Point maps

POINTS = RNG.normal(size=(3, HEIGHT, WIDTH)).astype(np.float32)
POINTS[:, 0, 0], POINTS[:, 1, 1] = np.nan, np.inf


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("dtype", ["float32", "float64", ">f4"])
def test_point_maps_from_files(tmp_path, order, dtype):
    points = POINTS.transpose(order).astype(dtype)
    np.save(tmp_path / "points.npy", points)
    np.savez(tmp_path / "one.npz", anything=points)
    np.savez_compressed(tmp_path / "several.npz", pointmap=points, intrinsics=np.eye(3))
    for name in ("points.npy", "one.npz", "several.npz"):
        found = load_pointmap(tmp_path / name)
        assert found.dtype == np.float32 and found.flags.c_contiguous and np.array_equal(found, POINTS, equal_nan=True)


def test_a_point_map_that_is_right_is_not_copied():
    assert as_pointmap(POINTS) is POINTS


def test_points_beyond_single_precision_are_infinite():
    assert np.all(np.isinf(as_pointmap(np.full((3, 2, 2), 1e300))))


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((3, 5, 3)), r"pointmap: expected either \[3, H, W\] or \[H, W, 3\], given \[3, 5, 3\], which may be both"),
        (np.zeros((4, 5, 6)), r"pointmap: expected floats .*, given float64 \[4, 5, 6\]"),
        (np.zeros((5, 3, 6)), r"pointmap: expected floats .*, given float64 \[5, 3, 6\]"),
        (np.zeros((3, 5, 6), np.int32), r"pointmap: expected floats .*, given int32 \[3, 5, 6\]"),
        (np.zeros((3, 0, 6)), r"pointmap: expected sides of 1 to 16384 pixels, given 6 x 0"),
        ([1.0], "pointmap: expected floats .*, given list"),
    ],
)
def test_point_maps_that_are_refused(points, message):
    with pytest.raises(ValueError, match=message):
        as_pointmap(points)


def test_files_of_points_that_cannot_be_read(tmp_path):
    np.save(tmp_path / "pickled.npy", np.array([{"code": 1}]), allow_pickle=True)
    np.save(tmp_path / "points.npy", POINTS)
    whole = (tmp_path / "points.npy").read_bytes()
    (tmp_path / "truncated.npy").write_bytes(whole[:-100])
    (tmp_path / "huge.npy").write_bytes(whole.replace(b"(3, 12, 20), }            ", b"(3, 9999999, 9999999), }  "))
    np.savez(tmp_path / "broken.npz", POINTS)
    (tmp_path / "broken.npz").write_bytes((tmp_path / "broken.npz").read_bytes()[:-100])
    (tmp_path / "text.npy").write_text("1 2 3")
    for name in ("pickled.npy", "truncated.npy", "huge.npy", "broken.npz", "text.npy", "missing.npy"):
        with pytest.raises(ValueError, match=rf"pointmap '.*{name}': expected an array in a .npy or .npz file, cannot read it"):
            load_pointmap(tmp_path / name)
    np.savez(tmp_path / "several.npz", a=POINTS, b=POINTS)
    with pytest.raises(
        ValueError, match=r"several.npz': expected one array, or one called 'pointmap', 'pointmaps' or 'points', given a, b"
    ):
        load_pointmap(tmp_path / "several.npz")
