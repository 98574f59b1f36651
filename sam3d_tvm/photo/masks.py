"""Masks as people have them, and the one rule that makes uint8 `[H, W]` of them: 0 outside of the object, 255 inside.

What is understood in only one way is taken:

- One value beside 0: it is inside, whatever it is. 0/1, 0/255, 0/65535, a label picture with one label, an index picture with
  one index beside 0, one colour on black.
- Soft edges: values between 0 and full (255, or 65535 in 16 bits, 1.0 in floats) that reach one half of full at least. Where
  more than half of the pixels lie well between 0 and full it is a photo. Values are kept: the crop is around all above 0.
- In formats with losses (JPEG, lossy WebP, AVIF, HEIC) noise looks like soft edges, so that values are rounded to 0 or full.

All else is refused with the values found: several labels, of which `split_labels` makes masks, several colours as in an overlay
on a photo, and what is nearly transparent everywhere.

An index picture counts by its indices, where black at another index is the background too; one with greys alone by those greys.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sam3d_tvm.notices import say
from sam3d_tvm.photo.arrays import array_kind, as_array
from sam3d_tvm.photo.pictures import WIDE_MODES, wide_values

FULL = 255
BETWEEN = (1 / 16, 15 / 16)  # of full: what lies between is neither outside nor inside
BAND = 1 << 22  # pixels that are looked at in one go
MAX_COLOURS = 4096  # more of them are a photo, even if all were shades of one colour
MAX_LABELS = 256
COLOUR_STEPS = 2  # by which rounding moves a shade of a colour
LOSSY_STEPS = 48  # by which a format with losses moves a colour
LABEL_SPREAD = 0.5  # of the pixels between 0 and full that lie in flat patches are labels, not edges
SHOWN = 8  # values in a message
USE_LABELS = "several labels are several objects: generate --labels (in Python split_labels)"


@dataclass(frozen=True, eq=False)
class Plane:
    """Values of a mask before the rule.

    values: unsigned integers or floats `[H, W]`. full: what stands for inside in them, or None where they are labels alone.
    lossy: of a format with losses. alpha: it is the alpha channel of a photo, which holds no labels. coloured: values are
    colours, 0xRRGGBB.
    """

    values: np.ndarray
    full: float | None
    lossy: bool = False
    alpha: bool = False
    coloured: bool = False


def coverage_of_picture(picture: Image.Image, name: str, lossy: bool = False) -> np.ndarray:
    """uint8 `[H, W]` of a Pillow image as its pixels lie in the file. ValueError where the rule does not tell."""
    return coverage(_plane_of_picture(picture, name, lossy), name)


def coverage_of_array(mask, name: str) -> np.ndarray:
    """uint8 `[H, W]` of bools, integers or floats `[H, W]`, `[H, W, 1]` or `[1, H, W]`, or colours uint8 `[H, W, 3 or 4]`."""
    mask = as_array(mask, name)
    if not _is_coloured(mask):
        return coverage(_plane_of_array(mask, name), name)
    if mask.shape[2] == 4 and mask[..., 3].min() != mask[..., 3].max():
        return coverage(Plane(mask[..., 3], FULL), name)
    return coverage(_plane_of_colours(mask[..., :3], name, False), name)


def coverage(plane: Plane, name: str) -> np.ndarray:
    """uint8 `[H, W]` by the rule of this file; the values themselves where they are that."""
    values, full = plane.values, plane.full
    if values.size == 0:
        raise ValueError(f"{name}: expected pixels, given {list(values.shape)}")
    if plane.lossy:
        values = _without_noise(values, full, name)
    found = _distinct(values)
    inside = found[found > 0]
    if len(inside) == 0:
        raise ValueError(f"{name}: expected pixels above 0 where the object is, given an empty mask: all are 0")
    if len(inside) == len(found):
        everywhere = f"every pixel is {_text(found[0])}" if len(found) == 1 else f"values are {_listed(found)}, none 0"
        if not plane.alpha:
            say(f"{name} covers the whole photo: {everywhere}")
    if len(inside) == 1:
        if values.dtype == np.uint8 and inside[0] == FULL:
            return values
        return (values > 0) * np.uint8(FULL)
    _check_soft(plane, values, found, name)
    soft = eight_bits(values, full)
    _say_if_faint(soft, name)
    return soft


def split_plane(plane: Plane, name: str, labels: Sequence[int | str] | None) -> list[tuple[int | str, np.ndarray]]:
    """A mask uint8 `[H, W]` for each of `labels`, by default for every one there is, ascending.

    ValueError for a label that is not there, for one given twice, and for what cannot be labels: soft edges, losses, fractions.
    """
    values = plane.values
    if plane.lossy:
        raise ValueError(f"{name}: expected labels in a format without losses such as PNG, which keeps their values")
    if values.dtype.kind == "f":
        if not np.array_equal(values, np.rint(values)):
            raise ValueError(f"{name}: expected whole numbers as labels, given {_listed(_distinct(values))}")
        values = values.astype(np.int64)
    found = _distinct(values)
    numbers = {_label(number, plane): number for number in found[found > 0]}
    if not numbers:
        raise ValueError(f"{name}: expected labels above 0, given an empty mask: all are 0")
    if labels is None:
        if len(numbers) > MAX_LABELS or (plane.full is not None and len(numbers) > 2 and not _is_labelled(values, plane.full)):
            raise ValueError(
                f"{name}: expected up to {MAX_LABELS} labels in flat patches, given {_listed(list(numbers))}, which look like "
                "soft edges or a photo; name the labels that are meant"
            )
        labels = list(numbers)
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
        raise ValueError(f"labels: expected a list of labels, given {labels!r}")
    labels = [_as_label(label, plane) for label in labels]
    if not labels or len(set(labels)) != len(labels) or not all(label in numbers for label in labels):
        given = ", ".join(map(str, labels)) or "none"
        raise ValueError(f"labels: expected different ones of those in {name}, {_listed(list(numbers))}, given {given}")
    return [(label, (values == numbers[label]) * np.uint8(FULL)) for label in labels]


def _as_label(given: int | str, plane: Plane) -> int | str:
    """What `_label` calls it, of a label that may be text."""
    if plane.coloured:
        return str(given).lower().removeprefix("#")
    return int(given) if isinstance(given, str) and given.isdecimal() else given


def _is_coloured(mask) -> bool:
    """Whether an array has colours behind its rows and columns."""
    is_bytes = isinstance(mask, np.ndarray) and mask.dtype == np.uint8 and mask.ndim == 3 and mask.size > 0
    return is_bytes and mask.shape[2] in (3, 4) and len(mask) != 1


def _label(number: int, plane: Plane) -> int | str:
    """What people call a label: a number, or the digits of a colour."""
    return f"{int(number):06x}" if plane.coloured else int(number)


def plane_of_labels(mask, name: str, lossy: bool = False) -> Plane:
    """What `split_plane` takes, of a Pillow image or an array: indices, values, or of a coloured picture 0xRRGGBB."""
    if not isinstance(mask, Image.Image):
        mask = as_array(mask, name)
        return plane_of_labels(Image.fromarray(mask), name) if _is_coloured(mask) else _plane_of_array(mask, name)
    if mask.mode not in (*WIDE_MODES, "1", "L", "P"):
        colours, hidden = np.asarray(mask.convert("RGBA")), False
        if mask.has_transparency_data:
            alpha = colours[..., 3]
            if not np.isin(_distinct(alpha), (0, FULL)).all():
                raise ValueError(
                    f"{name}: expected labels that are opaque, given an alpha channel of {_listed(_distinct(alpha))}"
                )
            hidden = alpha == 0
        grey = (colours[..., 0] == colours[..., 1]).all() and (colours[..., 0] == colours[..., 2]).all()
        values = colours[..., 0] if grey else _packed(colours)
        return Plane(np.where(hidden, values.dtype.type(0), values), FULL if grey else None, lossy, coloured=not grey)
    return _plane_of_picture(mask, name, lossy)


def _plane_of_picture(picture: Image.Image, name: str, lossy: bool) -> Plane:
    if picture.mode in WIDE_MODES:
        return Plane(wide_values(picture, name), 65535, lossy)
    if picture.has_transparency_data:
        alpha = picture.getchannel("A") if "A" in picture.getbands() else picture.convert("RGBA").getchannel("A")
        least, most = alpha.getextrema()
        if least != most:
            return Plane(np.asarray(alpha), FULL, lossy)
    if picture.mode == "P":
        return _plane_of_palette(picture, lossy)
    if picture.mode in ("1", "L", "LA"):
        values = np.asarray(picture.getchannel("L") if picture.mode == "LA" else picture)
        return Plane(values.view(np.uint8) if values.dtype == bool else values, 1 if picture.mode == "1" else FULL, lossy)
    return _plane_of_colours(np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB")), name, lossy)


def _plane_of_palette(picture: Image.Image, lossy: bool) -> Plane:
    """Of an index picture: its indices, or its greys where it has no colours."""
    indices = np.asarray(picture)
    palette = np.zeros((256, 3), np.uint8)
    known = np.array(picture.getpalette("RGB") or [], np.uint8).reshape(-1, 3)
    palette[: len(known)] = known
    used = _distinct(indices)
    colours = palette[used]
    if (colours == colours[:, :1]).all() and colours.any():
        return Plane(palette[:, 0][indices], FULL, lossy)
    background = ~palette.any(1)
    if not (background[used] & (used > 0)).any() or (used[0] == 0 and background[0]):
        return Plane(indices, None, lossy)  # several indices may be black only by chance, where 0 is
    # Black is the background of colours at whatever index; what has index 0 gets one of its own.
    numbers = np.arange(256, dtype=np.uint16)
    numbers[0] = 256
    return Plane(np.where(background, np.uint16(0), numbers)[indices], None, lossy)


def _plane_of_colours(colours: np.ndarray, name: str, lossy: bool) -> Plane:
    """Of uint8 [H, W, 3]: grey, or the shades of one colour on black."""
    flat = colours.reshape(-1, 3)
    slack = LOSSY_STEPS if lossy else 0
    grey = all(
        (np.abs(flat[start : start + BAND, 0].astype(np.int16) - flat[start : start + BAND, channel]) <= slack).all()
        for start in range(0, len(flat), BAND)
        for channel in (1, 2)
    )
    if grey:
        return Plane(colours[..., 1], FULL, lossy)
    if lossy:
        return Plane(_lossy_shades(colours, name), FULL, True)
    seen = np.zeros(1 << 24, bool)
    for start in range(0, len(flat), BAND):
        seen[_packed(flat[start : start + BAND])] = True
    codes = np.flatnonzero(seen)
    table = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], 1)  # [distinct, 3]
    if len(table) <= MAX_COLOURS:
        brightest = table[np.lexsort((table.sum(1), table.max(1)))[-1]]
        strength = table.max(1) / brightest.max()
        if len(table) == 1 or (codes[0] == 0 and (np.abs(table - strength[:, None] * brightest) <= COLOUR_STEPS).all()):
            shades = np.zeros(1 << 24, np.uint8)
            shades[codes] = np.rint(FULL * strength)
            values = np.empty(len(flat), np.uint8)
            for start in range(0, len(flat), BAND):
                values[start : start + BAND] = shades[_packed(flat[start : start + BAND])]
            return Plane(values.reshape(colours.shape[:2]), FULL, lossy)
    raise ValueError(_of_colours(name, [f"#{code:06x}" for code in codes[:SHOWN]], len(codes)))


def _of_colours(name: str, some: Sequence[str], count: int) -> str:
    if count > MAX_LABELS:
        return (
            f"{name}: expected 0 outside of the object and one value inside, given a picture of more than {MAX_LABELS} "
            "colours, as a photo or an overlay on it has"
        )
    return (
        f"{name}: expected black outside of the object and one colour inside, given {count} colours: {', '.join(some)}"
        f"{', ...' if count > len(some) else ''}; {USE_LABELS}"
    )


def _lossy_shades(colours: np.ndarray, name: str) -> np.ndarray:
    """uint8 [H, W] of one colour on black in a format that has changed both."""
    strength = colours.max(2)
    strong = colours[strength >= max(int(strength.max()) // 2, 1)]
    middle = np.median(strong, axis=0)
    near = (np.abs(strong - middle) <= LOSSY_STEPS).all(1).mean()
    if near < 0.9:
        raise ValueError(_of_colours(name, [], MAX_LABELS + 1))
    return np.rint(np.minimum(strength * (FULL / middle.max()), FULL)).astype(np.uint8)


def _plane_of_array(mask, name: str) -> Plane:
    kinds = "bools, integers or floats [H, W], [H, W, 1] or [1, H, W], or colours uint8 [H, W, 3 or 4]"
    if not isinstance(mask, np.ndarray) or mask.dtype.kind not in "biuf":
        raise ValueError(f"{name}: expected {kinds}, given {array_kind(mask)}")
    if mask.ndim == 3 and mask.shape[2] == 1:
        values = mask[..., 0]
    elif mask.ndim == 3 and len(mask) == 1:
        values = mask[0]
    elif mask.ndim == 2:
        values = mask
    else:
        several = "; give the masks of several objects one by one" if mask.ndim == 3 and 1 < len(mask) < 256 else ""
        raise ValueError(f"{name}: expected {kinds}, given {array_kind(mask)}{several}")
    if values.size == 0:
        raise ValueError(f"{name}: expected pixels, given {array_kind(mask)}")
    if values.dtype == bool:
        return Plane(values.view(np.uint8), 1)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(
            f"{name}: expected finite values, given NaN or infinity in {np.count_nonzero(~np.isfinite(values))} pixels"
        )
    least, most = values.min(), values.max()
    if least < 0:
        hint = "; if these are a network's logits, give mask > 0" if values.dtype.kind == "f" else ""
        raise ValueError(f"{name}: expected values of 0 and more, given {_text(least)} to {_text(most)}{hint}")
    if values.dtype.kind == "f":
        if most <= 1:
            return Plane(values, 1)
        whole = np.array_equal(values, np.rint(values))
        if whole and FULL < most <= 65535:
            return Plane(values.astype(np.uint16), None)
        if most > FULL or (not whole and most < FULL / 2):
            raise ValueError(
                f"{name}: expected floats of 0 to 1, or of 0 to 255, given {_text(least)} to {_text(most)}, which fits neither"
            )
        return Plane(values.astype(np.uint8) if whole else values, FULL)
    if most > 65535:
        return Plane(values, None)
    if values.dtype.itemsize == 1 or (most <= FULL and values.dtype != np.uint16):
        return Plane(values.astype(np.uint8, copy=False), FULL)
    return Plane(values.astype(np.uint16, copy=False), 65535 if values.dtype == np.uint16 else None)


def _without_noise(values: np.ndarray, full: float | None, name: str) -> np.ndarray:
    """Values of a format with losses rounded to 0 or full."""
    if full is None:  # an index picture
        return values
    between = _share_between(values, full)
    if between > 0.5:
        raise ValueError(_no_mask(name, between, full, _distinct(values)))
    if (most := int(values.max())) < full / 2:
        raise ValueError(
            f"{name}: expected values near 0 and {_text(full)}, given values up to {most}, which a format with losses does not "
            "keep apart; save the mask as PNG"
        )
    return (values >= full / 2) * np.uint8(FULL)


def _check_soft(plane: Plane, values: np.ndarray, found: np.ndarray, name: str) -> None:
    """ValueError unless values, of which `found` are the distinct ones, are those of one object with soft edges."""
    full = plane.full
    if full is None or (len(found) <= MAX_LABELS + 1 and not plane.alpha and _is_labelled(values, full)):
        whole = values.dtype.kind != "f" or np.array_equal(found, np.rint(found))
        hint = USE_LABELS if whole else "if these are a network's probabilities, give mask > 0.5"
        raise ValueError(f"{name}: expected 0 outside of the object and one value inside, given {_listed(found)}; {hint}")
    if found[-1] < full / 2:
        hint = ""
        if full == 65535 and found[-1] <= FULL:
            hint = ", as if 8 bits had been saved in 16"
        elif not plane.alpha and len(found) <= SHOWN and values.dtype.kind != "f":
            hint = f"; {USE_LABELS}"
        raise ValueError(
            f"{name}: expected values of 0 to {_text(full)} that reach one half of it inside of the object, "
            f"given {_listed(found)}{hint}"
        )
    if (between := _share_between(values, full)) > 0.5:
        raise ValueError(_no_mask(name, between, full, found))


def _no_mask(name: str, between: float, full: float, found: np.ndarray) -> str:
    return (
        f"{name}: expected 0 outside of the object and {_text(full)} inside, with soft edges at most, given a picture of which "
        f"{100 * between:.0f} % lies between them, as in a photo: {_listed(found)}"
    )


def _share_between(values: np.ndarray, full: float) -> float:
    """Of all pixels, those that are neither near 0 nor near full."""
    flat = values.reshape(-1)
    low, high = (share * full for share in BETWEEN)
    bands = (flat[start : start + BAND] for start in range(0, len(flat), BAND))
    return sum(np.count_nonzero((band > low) & (band < high)) for band in bands) / len(flat)


def _is_labelled(values: np.ndarray, full: float) -> bool:
    """Whether values between 0 and nearly full lie in flat patches of 2 x 2 pixels, as labels do, and edges do not."""
    count = patched = 0
    rows = max(BAND // max(values.shape[1], 1), 1)
    for start in range(0, len(values), rows):
        band = values[max(start - 1, 0) : start + rows + 1]
        between = (band > 0) & (band < BETWEEN[1] * full)
        same = (band[:-1, :-1] == band[1:, 1:]) & (band[:-1, :-1] == band[1:, :-1]) & (band[:-1, :-1] == band[:-1, 1:])
        flat = np.zeros_like(between)
        for rows_of, columns_of in ((slice(-1), slice(-1)), (slice(-1), slice(1, None)), (slice(1, None), slice(-1))):
            flat[rows_of, columns_of] |= same
        flat[1:, 1:] |= same
        own = slice(min(start, 1), min(start, 1) + rows)
        count += np.count_nonzero(between[own])
        patched += np.count_nonzero((between & flat)[own])
    return count > 0 and patched >= LABEL_SPREAD * count


def _say_if_faint(soft: np.ndarray, name: str) -> None:
    """A notice where pixels that are nearly 0 make the crop more than half as large again as the object."""
    sides = []
    for inside in (soft > 0, soft >= 128):
        places = [np.flatnonzero(inside.any(axis)) for axis in (0, 1)]
        sides.append([int(place[-1] - place[0]) + 1 if len(place) else 0 for place in places])
    (width, height), (strong_width, strong_height) = sides
    if max(width, height) > 1.5 * max(strong_width, strong_height):
        say(
            f"{name}: pixels from 1 to 127 reach beyond the object: those above 0, around which the crop is, span {width} x "
            f"{height} pixels, those from 128 up {strong_width} x {strong_height}"
        )


def eight_bits(values: np.ndarray, full: float) -> np.ndarray:
    """uint8 of values of 0 to `full`, rounded: 65535 becomes 255. Pillow would clip."""
    if full == FULL and values.dtype == np.uint8:
        return values
    if full == 65535:
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return np.rint(values.astype(np.float32) * np.float32(FULL / full)).astype(np.uint8)


def _distinct(values: np.ndarray) -> np.ndarray:
    """The values that occur, ascending."""
    if values.dtype.itemsize > 2 or values.dtype.kind == "f":
        return np.unique(values)
    flat = values.reshape(-1)
    counts = np.zeros(1 << 8 * values.dtype.itemsize, np.int64)
    for start in range(0, len(flat), BAND):
        counts += np.bincount(flat[start : start + BAND], minlength=len(counts))
    return np.flatnonzero(counts)


def _packed(colours: np.ndarray) -> np.ndarray:
    """uint32 [...] of colours uint8 [..., 3]: 0xRRGGBB."""
    packed = np.zeros(colours.shape[:-1], np.uint32)
    for channel in range(3):
        packed = packed << np.uint32(8) | colours[..., channel]
    return packed


def _text(value) -> str:
    return f"{value:g}" if isinstance(value, (float, np.floating)) else str(value)


def _listed(values) -> str:
    """The first few values, and how many there are."""
    some = ", ".join(_text(value) for value in values[:SHOWN])
    return f"{some}, ... up to {_text(values[-1])} ({len(values)} values)" if len(values) > SHOWN else some or "none"
