"""Masks as people have them: what is understood in one way is taken, all else refused with the values found."""

import sys

import numpy as np
import pillow_heif
import pytest
import torch
from PIL import Image, ImageFilter

from sam3d_tvm.notices import Notice
from sam3d_tvm.photo.images import as_rgba, load_mask, load_photo, load_rgba, memory_of_photo, split_labels

HEIGHT, WIDTH = 40, 60
ORIENTATION = 0x0112  # the EXIF tag
RNG = np.random.default_rng(0)
INSIDE = np.zeros((HEIGHT, WIDTH), bool)
INSIDE[8:30, 10:41] = True
FULL = INSIDE * np.uint8(255)
PHOTO = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
SOFT = np.asarray(Image.fromarray(FULL).filter(ImageFilter.GaussianBlur(2)))
LABELS = np.zeros((HEIGHT, WIDTH), np.uint8)
LABELS[2:10, 2:20], LABELS[15:30, 5:25], LABELS[20:38, 40:58] = 3, 7, 12


def saved(path, array_or_picture, **options):
    picture = array_or_picture if isinstance(array_or_picture, Image.Image) else Image.fromarray(array_or_picture)
    picture.save(path, **options)
    return path


def coloured(values, colours):
    """uint8 [H, W, 3] of values that are rows of `colours`."""
    return np.uint8(colours)[values]


def index_picture(indices, colours):
    picture = Image.fromarray(indices.astype(np.uint8), "P")
    picture.putpalette(np.uint8(colours).tobytes())
    return picture


def exif(orientation):
    data = Image.Exif()
    data[ORIENTATION] = orientation
    return data


# One value beside 0

TWO_VALUES = {
    "0 and 1": INSIDE.astype(np.uint8),
    "0 and 3, a label": INSIDE * np.uint8(3),
    "0 and 255": FULL,
    "0 and 254": INSIDE * np.uint8(254),
    "16 bits, 0 and 1": INSIDE.astype(np.uint16),
    "16 bits, 0 and 255": INSIDE * np.uint16(255),
    "16 bits, 0 and 65535": INSIDE * np.uint16(65535),
    "32 bits, 0 and 255": INSIDE * np.int32(255),
    "1 bit": INSIDE,
    "grey in three channels": np.repeat((INSIDE * np.uint8(7))[..., None], 3, 2),
    "red on black": coloured(INSIDE.astype(int), [[0, 0, 0], [255, 0, 0]]),
    "dark blue on black": coloured(INSIDE.astype(int), [[0, 0, 0], [0, 0, 40]]),
    "a faint red layer": np.dstack([np.full((HEIGHT, WIDTH, 3), (255, 0, 0), np.uint8), INSIDE * np.uint8(77)]),
    "red on opaque black": np.dstack([coloured(INSIDE.astype(int), [[0, 0, 0], [255, 0, 0]]), np.full_like(FULL, 255)]),
}


@pytest.mark.parametrize("kind", TWO_VALUES)
def test_two_values_in_pictures(tmp_path, kind):
    path = saved(tmp_path / ("mask.tiff" if kind.startswith("32") else "mask.png"), TWO_VALUES[kind])
    assert np.array_equal(load_mask(path), FULL)
    with Image.open(path) as picture:
        assert np.array_equal(as_rgba(PHOTO, picture)[..., 3], FULL)


@pytest.mark.parametrize(
    "colours",
    [
        [[0, 0, 0], [128, 0, 0]],  # of dark luminance
        [[0, 0, 0], [3, 3, 3]],
        [[50, 60, 70], [0, 90, 0]],  # 0 is the background, whatever its colour
        [[255, 255, 255], [200, 0, 0]],
    ],
)
def test_index_pictures_count_by_index(tmp_path, colours):
    assert np.array_equal(load_mask(saved(tmp_path / "mask.png", index_picture(INSIDE, colours))), FULL)


@pytest.mark.parametrize("colours", [[[255, 255, 255], [0, 0, 0]], [[255, 0, 0], [0, 0, 0]]])
def test_index_pictures_with_black_at_another_index(tmp_path, colours):
    """As GIF and programs that make PNG smaller sort their colours."""
    for name in ("mask.png", "mask.gif"):
        assert np.array_equal(load_mask(saved(tmp_path / name, index_picture(~INSIDE, colours))), FULL)


def test_an_index_picture_of_greys_is_grey(tmp_path):
    greys = np.repeat(np.arange(256, dtype=np.uint8)[::-1, None], 3, 1)  # index 255 is black
    assert np.array_equal(load_mask(saved(tmp_path / "mask.png", index_picture(255 - SOFT, greys))), SOFT)


ARRAYS = {
    "bool": INSIDE,
    "uint8": INSIDE.astype(np.uint8),
    "uint16": INSIDE * np.uint16(255),
    "int64": INSIDE * 4,
    "int64 beyond 16 bits": INSIDE * 70_000,
    "big-endian": INSIDE.astype(">u2"),
    "float32 of 0 and 1": INSIDE.astype(np.float32),
    "float64 of 0 and 255": INSIDE * 255.0,
    "float16 of one half": INSIDE.astype(np.float16) / 2,
    "float32 of a label": INSIDE * np.float32(300),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(tmp_path, kind):
    mask = ARRAYS[kind]
    for shaped in (mask, mask[..., None], mask[None]):
        assert np.array_equal(as_rgba(PHOTO, shaped)[..., 3], FULL)
    np.save(tmp_path / "mask.npy", mask[None])
    np.savez(tmp_path / "one.npz", anything=mask)
    np.savez_compressed(tmp_path / "several.npz", masks=mask[..., None], scores=np.ones(3))
    for name in ("mask.npy", "one.npz", "several.npz"):
        assert np.array_equal(load_mask(tmp_path / name, (WIDTH, HEIGHT)), FULL)


def test_tensors_of_torch(tmp_path):
    assert np.array_equal(as_rgba(PHOTO, torch.from_numpy(INSIDE).to(torch.bfloat16))[..., 3], FULL)
    for tensor in (torch.from_numpy(INSIDE), torch.from_numpy(INSIDE.astype(np.float32))[None].requires_grad_()):
        assert np.array_equal(as_rgba(PHOTO, tensor)[..., 3], FULL)
        assert np.array_equal(as_rgba(torch.from_numpy(PHOTO), tensor), np.dstack([PHOTO, FULL]))
        torch.save({"masks": tensor, "scores": torch.ones(3)}, tmp_path / "mask.pt")
        assert np.array_equal(load_mask(tmp_path / "mask.pt"), FULL)
    image = torch.zeros(HEIGHT, WIDTH, 4, dtype=torch.uint8)
    as_rgba(image, INSIDE)
    assert not image.any()  # it is the caller's


def test_colours_in_arrays():
    """As OpenCV reads any mask, whatever the order of channels, and with transparency."""
    for mask in (
        np.repeat(FULL[..., None], 3, 2),
        coloured(INSIDE.astype(int), [[0, 0, 0], [0, 0, 9]]),
        np.dstack([PHOTO, FULL]),
    ):
        assert np.array_equal(as_rgba(PHOTO, mask)[..., 3], FULL)


# Soft edges


def test_soft_edges_are_kept(tmp_path):
    assert len(np.unique(SOFT)) > 20
    red = np.rint(SOFT[..., None] / 255 * [200, 100, 0]).astype(np.uint8)
    for name, mask in {
        "grey.png": SOFT,
        "wide.png": SOFT * np.uint16(257),
        "alpha.png": np.dstack([PHOTO, SOFT]),
    }.items():
        assert np.array_equal(load_mask(saved(tmp_path / name, mask)), SOFT), name
    for mask in (SOFT / np.float32(255), SOFT.astype(np.float64), SOFT.astype(np.int64), SOFT):
        assert np.array_equal(as_rgba(PHOTO, mask)[..., 3], SOFT), mask.dtype
    assert np.abs(load_mask(saved(tmp_path / "red.png", red)).astype(int) - SOFT).max() <= 1
    half = np.asarray(Image.fromarray(FULL).reduce(3))  # few values on edges
    assert np.array_equal(as_rgba(PHOTO[: len(half), : half.shape[1]], half)[..., 3], half)


def test_the_alpha_channel_of_a_photo_may_have_flat_parts():
    glass = np.where(INSIDE, 90, 0).astype(np.uint8)
    glass[10:28, 12:30] = 255
    with pytest.warns(Notice, match="reach beyond the object"):
        assert np.array_equal(as_rgba(np.dstack([PHOTO, glass]))[..., 3], glass)
    assert np.array_equal(as_rgba(np.dstack([PHOTO, INSIDE * np.uint8(1)]))[..., 3], FULL)


@pytest.mark.parametrize("quality", [30, 75, 95])
def test_losses_are_rounded_away(tmp_path, quality):
    for suffix in ("jpg", "webp", "avif"):
        path = saved(tmp_path / f"mask.{suffix}", FULL, quality=quality)
        with Image.open(path) as picture:
            assert suffix == "avif" or len(np.unique(np.asarray(picture))) > 2, "nothing was lost, so that this tests nothing"
        found = load_mask(path)
        assert set(np.unique(found)) == {0, 255}
        assert (found != FULL).mean() < 0.01
    red = coloured(INSIDE.astype(int), [[0, 0, 0], [230, 20, 30]])
    assert (load_mask(saved(tmp_path / "red.jpg", red, quality=quality)) != FULL).mean() < 0.02
    assert np.array_equal(load_mask(saved(tmp_path / "soft.webp", SOFT, lossless=True)), SOFT)


def test_what_covers_the_photo_is_said(tmp_path):
    whole = np.full((HEIGHT, WIDTH), 255, np.uint8)
    for mask in (whole, whole > 0, whole / 255, whole // 255):
        with pytest.warns(Notice, match="mask covers the whole photo: every pixel is"):
            assert np.array_equal(as_rgba(PHOTO, mask)[..., 3], whole)
    with pytest.warns(Notice, match="none 0"):
        as_rgba(PHOTO, np.where(INSIDE, 255, 254).astype(np.uint8))


def test_faint_pixels_far_away_are_said():
    mask = np.where(INSIDE, 255, 0).astype(np.uint8)
    mask[0, 0], mask[-1, -1] = 1, 2
    with pytest.warns(Notice, match="those above 0, around which the crop is, span 60 x 40 pixels, those from 128 up 31 x 22"):
        assert np.array_equal(as_rgba(PHOTO, mask)[..., 3], mask)


# What is not clear

OVERLAY = np.where(INSIDE[..., None], PHOTO // 2 + np.uint8([127, 0, 0]), PHOTO)
PATCHES = np.where(INSIDE, 128, 0).astype(np.uint8)
PATCHES[12:25, 15:30] = 255


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (LABELS, r"expected 0 outside of the object and one value inside, given 0, 3, 7, 12; several labels .* --labels"),
        (LABELS * np.uint16(1), r"expected 0 outside .*, given 0, 3, 7, 12; several labels are several objects"),
        (PATCHES, r"expected 0 outside of the object and one value inside, given 0, 128, 255; several labels"),
        (
            SOFT // 8,
            r"expected values of 0 to 255 that reach one half of it inside of the object, given 0, 1, .* up to 31 \(\d+ v",
        ),
        (SOFT.astype(np.uint16), r"expected values of 0 to 65535 that reach .*, as if 8 bits had been saved in 16"),
        (PHOTO[..., 0], r"expected 0 outside of the object and 255 inside, .* \d\d % lies between them, as in a photo"),
        (
            OVERLAY,
            r"expected 0 outside of the object and one value inside, given a picture of more than 256 colours, as a photo",
        ),
        (
            coloured(LABELS // 3, [[0, 0, 0], [255, 0, 0], [0, 255, 0], [9, 9, 9], [0, 0, 200]]),
            r"expected black outside of the object and one colour inside, given 4 colours: #000000, #0000c8, #00ff00, #ff0000;",
        ),
        (
            coloured(INSIDE.astype(int), [[255, 255, 255], [255, 0, 0]]),
            r"expected black outside .*, given 2 colours: #ff0000, #ffffff",
        ),
        (np.zeros((HEIGHT, WIDTH), np.uint16), "expected pixels above 0 where the object is, given an empty mask: all are 0"),
    ],
)
def test_pictures_that_are_refused(tmp_path, mask, message):
    with pytest.raises(ValueError, match=rf"mask '.*mask.png': {message}"):
        load_mask(saved(tmp_path / "mask.png", mask))
    with pytest.raises(ValueError, match=f"mask: {message}"):
        as_rgba(PHOTO, mask)


def test_index_pictures_of_several_labels(tmp_path):
    colours = RNG.integers(1, 255, (13, 3))
    colours[0] = 0
    path = saved(tmp_path / "mask.png", index_picture(LABELS, colours))
    with pytest.raises(ValueError, match=r"given 0, 3, 7, 12; several labels are several objects: generate --labels"):
        load_mask(path)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (LABELS.astype(np.int32) - 1, r"expected values of 0 and more, given -1 to 11"),
        (np.where(INSIDE, 3.5, -2.0), r"expected values of 0 and more, given -2 to 3.5; if these are a network's logits"),
        (np.where(INSIDE, np.nan, 0.0), r"expected finite values, given NaN or infinity in 682 pixels"),
        (np.where(INSIDE, 1.5, 0.0) * SOFT / 255, r"expected floats of 0 to 1, or of 0 to 255, given 0 to 1.5"),
        (SOFT * 3.7, r"expected floats of 0 to 1, or of 0 to 255, given 0 to \d+.*, which fits neither"),
        (SOFT / 2550, r"expected values of 0 to 1 that reach one half of it"),
        (np.where(INSIDE, 0.99, 0.01), r".*given 0\.01, 0\.99; if these are a network's probabilities, give mask > 0\.5$"),
        (LABELS.astype(np.float32), r"expected 0 outside .*, given 0, 3, 7, 12; several labels"),
        (LABELS.astype(np.int64) * 10_000, r"expected 0 outside .*, given 0, 30000, 70000, 120000; several labels"),
        (
            np.stack([INSIDE, INSIDE]),
            r"expected bools, .*, given bool \[2, 40, 60\]; give the masks of several objects one by one",
        ),
        (INSIDE.astype(complex), r"expected bools, integers or floats .*, given complex128 \[40, 60\]"),
        (INSIDE[:0], r"expected pixels, given bool \[0, 60\]"),
    ],
)
def test_arrays_that_are_refused(mask, message):
    with pytest.raises(ValueError, match=f"mask: {message}"):
        as_rgba(PHOTO, mask)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (LABELS, r"expected values near 0 and 255, given values up to \d+, which a format with losses does not keep apart"),
        (PHOTO[..., 0], r"expected 0 outside .* as in a photo"),
        (OVERLAY, r"expected 0 outside of the object and one value inside, given a picture of more than 256 col"),
    ],
)
def test_pictures_with_losses_that_are_refused(tmp_path, mask, message):
    with pytest.raises(ValueError, match=message):
        load_mask(saved(tmp_path / "mask.jpg", mask))


# Photos without a mask of their own


@pytest.mark.parametrize(("alpha", "says"), [(255, "is opaque everywhere"), (77, "is equally transparent everywhere")])
def test_an_alpha_channel_that_says_nothing(tmp_path, alpha, says):
    image = np.dstack([PHOTO, np.full((HEIGHT, WIDTH), alpha, np.uint8)])
    message = rf"expected one, as image.* {says}: its alpha channel is {alpha} in all pixels; pass a mask as a second picture"
    path = saved(tmp_path / "photo.png", image)
    for given in (image, Image.fromarray(image), torch.from_numpy(image), path):
        with pytest.raises(ValueError, match=f"mask: {message}"):
            load_photo(given)
    assert np.array_equal(load_rgba(path, saved(tmp_path / "mask.png", FULL)), np.dstack([PHOTO, FULL]))
    index = index_picture(LABELS, RNG.integers(0, 255, (13, 3)))
    nearly = np.dstack([PHOTO, 250 + FULL // 128])
    with pytest.raises(
        ValueError, match="mask: expected one, as image is opaque everywhere: its alpha channel is 250 to 251 in"
    ):
        load_photo(nearly)
    with pytest.raises(ValueError, match="is opaque everywhere"):
        load_rgba(saved(tmp_path / "index.png", index, transparency=9))


# Orientation

TURNS = {1: [], 2: [1], 3: [0, 1], 4: [0], 5: [], 6: [0], 7: [0, 1], 8: [1]}


def upright(array, orientation):
    array = np.flip(array, TURNS[orientation])
    return array.swapaxes(0, 1) if orientation > 4 else array


@pytest.mark.parametrize("orientation", range(2, 9))
@pytest.mark.parametrize("width", [WIDTH, HEIGHT])
def test_a_mask_drawn_on_the_raw_pixels_is_turned_with_the_photo(tmp_path, orientation, width):
    photo = saved(tmp_path / "photo.jpg", PHOTO[:, :width], exif=exif(orientation))
    with Image.open(photo) as picture:
        pixels = np.asarray(picture)
    expected = np.dstack([upright(pixels, orientation), upright(FULL[:, :width], orientation)])
    plain = saved(tmp_path / "plain.png", FULL[:, :width])
    np.save(tmp_path / "mask.npy", INSIDE[:, :width])
    for mask in (plain, tmp_path / "mask.npy"):
        with pytest.warns(Notice, match=r"mask '.*': (mirrored|turned) .*as the photo is by its EXIF data, since it fits"):
            assert np.array_equal(load_rgba(photo, mask), expected)
    # What its own file says counts, and so does what is upright by its size.
    own = saved(tmp_path / "own.png", FULL[:, :width], exif=exif(orientation))
    assert np.array_equal(load_rgba(photo, own), expected)
    turned = np.ascontiguousarray(expected[..., 3])
    seen = saved(tmp_path / "seen.png", turned, exif=exif(1))
    assert np.array_equal(load_rgba(photo, seen), expected)
    assert np.array_equal(load_photo(photo, turned).rgba, expected)  # arrays are upright where that fits
    assert np.array_equal(load_photo(photo, saved(tmp_path / "upright.png", turned), mask_upright=True).rgba, expected)
    assert load_photo(photo, seen).orientation == orientation
    if width != HEIGHT and orientation > 4:
        assert np.array_equal(load_rgba(photo, tmp_path / "upright.png"), expected)
        with pytest.warns(Notice, match="as the photo is by its EXIF data"):
            assert np.array_equal(load_photo(photo, INSIDE).rgba, expected)
        with pytest.raises(
            ValueError, match=r"plain.png': expected 40 x 60 pixels, as the photo has upright, given 60 x 40, as its"
        ):
            load_photo(photo, plain, mask_upright=True)


def test_masks_of_other_sizes_are_refused_with_a_hint(tmp_path):
    photo = saved(tmp_path / "photo.jpg", PHOTO, exif=exif(6))
    plain = saved(tmp_path / "plain.jpg", PHOTO)
    for image, mask, message in (
        (
            photo,
            FULL[:, :50],
            "expected 40 x 60 pixels, as the image has, or 60 x 40 before its EXIF data turns it, given 50 x 40$",
        ),
        (plain, FULL.T.copy(), "expected 60 x 40 pixels, as the image has, given 40 x 60; it seems to be turned by 90 degrees"),
        (plain, FULL[::2, ::2], "expected 60 x 40 pixels, as the image has, given 30 x 20; resize it by the nearest pixel"),
    ):
        with pytest.raises(ValueError, match=rf"mask '.*mask.png': {message}"):
            load_rgba(image, saved(tmp_path / "mask.png", mask))


# Several labels


@pytest.mark.parametrize("kind", ["grey", "wide", "index", "array", "floats"])
def test_labels_become_masks(tmp_path, kind):
    colours = np.zeros((13, 3), np.uint8)
    colours[1:] = RNG.integers(1, 255, (12, 3))
    mask = {
        "grey": LABELS,
        "wide": LABELS.astype(np.uint16),
        "index": index_picture(LABELS, colours),
        "array": LABELS.astype(np.int64)[None],
        "floats": LABELS.astype(np.float32),
    }[kind]
    given = saved(tmp_path / "labels.png", mask) if kind in ("grey", "wide", "index") else mask
    found = split_labels(given)
    assert [label for label, _ in found] == [3, 7, 12]
    for label, values in found:
        assert values.dtype == np.uint8 and np.array_equal(values, (label == LABELS) * np.uint8(255))
        assert np.array_equal(as_rgba(PHOTO, values)[..., 3], values)
    assert [label for label, _ in split_labels(given, [12, 3])] == [12, 3]
    with pytest.raises(ValueError, match=r"labels: expected different ones of those in mask.*, 3, 7, 12, given 3, 4"):
        split_labels(given, [3, 4])
    for labels in ([], [3, 3]):
        with pytest.raises(ValueError, match="labels: expected different ones"):
            split_labels(given, labels)


@pytest.mark.parametrize("labels", [3, "37"])
def test_labels_are_a_list(labels):
    with pytest.raises(ValueError, match=f"labels: expected a list of labels, given {labels!r}"):
        split_labels(LABELS, labels)


def test_labels_of_colours(tmp_path):
    picture = coloured(np.searchsorted([0, 3, 7, 12], LABELS), [[0, 0, 0], [255, 0, 0], [0, 128, 0], [1, 2, 3]])
    clear = np.dstack([np.where(LABELS[..., None] > 0, picture, 200), np.where(LABELS > 0, 255, 0)]).astype(np.uint8)
    for name, mask in (("rgb.png", picture), ("rgba.png", clear)):
        found = dict(split_labels(saved(tmp_path / name, mask)))
        assert list(found) == ["008000", "010203", "ff0000"]
        assert np.array_equal(found["ff0000"], (LABELS == 3) * np.uint8(255))
    assert [label for label, _ in split_labels(picture, ["#FF0000"])] == ["ff0000"]


def test_labels_are_turned_with_the_photo(tmp_path):
    photo = saved(tmp_path / "photo.jpg", PHOTO, exif=exif(6))
    with pytest.warns(Notice, match="turned by 90 degrees clockwise"):
        found = split_labels(saved(tmp_path / "labels.png", LABELS), [7], image=photo)
    assert np.array_equal(found[0][1], upright((LABELS == 7) * np.uint8(255), 6))
    own = split_labels(saved(tmp_path / "own.png", LABELS, exif=exif(6)))
    assert np.array_equal(own[1][1], found[0][1])
    with pytest.raises(ValueError, match="expected 40 x 60 pixels"):
        split_labels(LABELS[:, :50], image=photo)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (SOFT, r"expected up to 256 labels in flat patches, given 1, 2, .* which look like soft edges or a photo"),
        (PHOTO, r"expected up to 256 labels in flat patches, given 0.*\(\d+ values\)"),
        (LABELS / 12, r"expected whole numbers as labels"),
        (LABELS * 0, r"expected labels above 0, given an empty mask"),
    ],
)
def test_what_has_no_labels(mask, message):
    with pytest.raises(ValueError, match=f"mask: {message}"):
        split_labels(mask)


def test_labels_need_a_format_without_losses(tmp_path):
    with pytest.raises(ValueError, match=r"labels.jpg': expected labels in a format without losses such as PNG"):
        split_labels(saved(tmp_path / "labels.jpg", LABELS * 20))


# HEIC and AVIF


def test_heic_and_avif(tmp_path):
    smooth = np.asarray(Image.fromarray(PHOTO).resize((600, 400), Image.Resampling.BICUBIC))
    picture = Image.fromarray(smooth)
    pillow_heif.from_pillow(picture).save(tmp_path / "photo.heic", quality=95)
    picture.save(tmp_path / "photo.avif", quality=95)
    registered = dict(Image.OPEN)
    mask = saved(tmp_path / "mask.png", np.asarray(Image.fromarray(FULL).resize((600, 400), Image.Resampling.NEAREST)))
    for name in ("photo.heic", "photo.avif"):
        found = load_rgba(tmp_path / name, mask)
        assert found.shape == (400, 600, 4) and np.abs(found[..., :3].astype(int) - smooth).mean() < 8
    assert registered == Image.OPEN, "Pillow belongs to the whole process"


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["heic", "avif"])
def test_heic_and_avif_of_phones(tmp_path, suffix, orientation):
    """A photo with a bright corner, whose orientation is carried out once."""
    lying = np.zeros((64, 96, 3), np.uint8)
    lying[:32, :24] = 255
    path, picture = tmp_path / f"photo.{suffix}", Image.fromarray(lying)
    if suffix == "heic":
        pillow_heif.from_pillow(picture).save(path, quality=95, exif=exif(orientation).tobytes())
    else:
        picture.save(path, quality=95, exif=exif(orientation))
    seen = upright(lying, orientation)[..., 0]
    assert np.abs(load_photo(path, seen > 0).rgba[..., 0].astype(int) - seen).mean() < 8


def test_heic_without_the_library(tmp_path, monkeypatch):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ValueError, match=r"image '.*photo.heic': expected pillow-heif to be installed .* 'sam3d-tvm\[heif\]'"):
        load_rgba(tmp_path / "photo.heic")


def test_a_broken_heic(tmp_path):
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")
    with pytest.raises(ValueError, match=r"image '.*photo.heic': expected a picture as PNG, .*HEIC, cannot read it"):
        load_rgba(tmp_path / "photo.heic")


# Memory


def test_memory_is_estimated_from_headers(tmp_path):
    photo, mask = saved(tmp_path / "photo.jpg", PHOTO), saved(tmp_path / "mask.png", FULL)
    assert memory_of_photo(photo, mask) == 8 * HEIGHT * WIDTH
    assert memory_of_photo(photo, FULL) == memory_of_photo(photo, mask)
    assert memory_of_photo(PHOTO, INSIDE) < memory_of_photo(photo, mask)
