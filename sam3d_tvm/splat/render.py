"""A picture of voxels coloured by their latents.

Colour: the first three principal components of the latents as red, green and blue. View: orthographic, three quarters
from above, z up. The three axes are projected on whole pixels of an enlarged canvas, so that all faces of one direction
are the same stencil, set down at whole pixels, and meet without gaps or overlap; the canvas is then scaled down.
"""

import numpy as np
from PIL import Image

BACKGROUND = ((250, 250, 252), (214, 219, 228))  # top and bottom of the picture
SUPERSAMPLING = 3.0  # pixels of the canvas to one of the picture
MARGIN = 0.06  # free on every side, as a part of the picture
COORD_LIMIT = 1 << 20  # three coordinates share a 64-bit key
DARKEST = 0.15  # of a colour channel in full light, so that the shading of dark voxels still shows

AZIMUTH, ELEVATION = np.deg2rad(35.0), np.deg2rad(30.0)  # of the viewer, from the x axis and above the ground
LIGHT = np.array([0.78, 0.60, 1.00])  # brightness of the faces towards x, y and z
OCCLUSION = 0.07  # light lost to each voxel that stands beside a face, of eight at most


def voxel_picture(coords: np.ndarray, latents: np.ndarray, size: int = 800) -> Image.Image:
    """An RGB picture of `size` x `size` pixels of the voxels of one batch element.

    coords: int32 `[N, 4]` of (batch, x, y, z), every row once, coordinates within +-2^20. latents: floats `[N, C]`, one
    channel or more. No rows give an empty picture. Grids finer than the pixels are drawn at half of their resolution,
    or a quarter, and so on. Equal input gives equal bytes.

    Raises ValueError for another dtype or shape, rows of several batch elements, duplicate or out-of-range coordinates,
    latents that are not finite, and a size outside 16 to 2048.
    """
    _check(coords, latents, size)
    canvas_size = round(size * SUPERSAMPLING)
    xyz = coords[:, 1:].astype(np.int64)
    colours = latent_colours(latents)
    xyz, colours = _coarsened(xyz, colours, canvas_size)
    if len(xyz) == 0:
        return _backdrop(size)
    return _drawn(xyz, colours, size, canvas_size)


def latent_colours(latents: np.ndarray) -> np.ndarray:
    """Colours of latents: float64 `[N, 3]` in 0..1, their first three principal components.

    Each component fills 0..1 between its 1st and 99th percentile. One that does not exist, or does not vary, is 0.5.
    The sign of a component makes its largest weight positive, so that colours do not flip from run to run.
    """
    centred = latents.astype(np.float64)
    colours = np.full((len(centred), 3), 0.5)
    if len(centred) < 2:
        return colours
    centred -= centred.mean(axis=0)
    spread = np.abs(centred).max()
    if spread == 0:
        return colours
    centred /= spread
    # The rows of the last factor are the axes; the small covariance has the same ones as the long array.
    _, variances, axes = np.linalg.svd(centred.T @ centred)
    for i, (variance, axis) in enumerate(zip(variances[:3], axes[:3], strict=True)):
        if variance <= 1e-12 * variances[0]:
            break
        axis = axis * np.sign(axis[np.argmax(np.abs(axis))])
        component = centred @ axis
        low, high = np.percentile(component, (1, 99))
        if high - low <= 1e-9 * np.abs(component).max():  # nearly all rows equal: few outliers take the whole range
            low, high = component.min(), component.max()
        colours[:, i] = np.clip((component - low) / (high - low), 0, 1)
    return colours


def _check(coords: np.ndarray, latents: np.ndarray, size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or not 16 <= size <= 2048:
        raise ValueError(f"size: expected an integer from 16 to 2048, given {size!r}")
    for name, array in (("coords", coords), ("latents", latents)):
        if not isinstance(array, np.ndarray):
            raise ValueError(f"{name}: expected a numpy array, given {type(array).__name__}")
    if coords.dtype != np.int32 or coords.ndim != 2 or coords.shape[1] != 4:
        raise ValueError(f"coords: expected int32 [N, 4], given {coords.dtype} {list(coords.shape)}")
    if latents.dtype.kind != "f" or latents.ndim != 2 or latents.shape[1] < 1:
        raise ValueError(f"latents: expected floats [N, C], given {latents.dtype} {list(latents.shape)}")
    if len(coords) != len(latents):
        raise ValueError(f"latents: expected {len(coords)} rows as coords, given {len(latents)}")
    if not np.isfinite(latents).all():
        row = np.flatnonzero(~np.isfinite(latents).all(axis=1))[0]
        raise ValueError(f"latents: expected finite values, given {latents[row].tolist()} in row {row}")
    if len(coords) == 0:
        return
    if (coords[:, 0] != coords[0, 0]).any():
        raise ValueError(f"coords: expected rows of one batch element, given {len(np.unique(coords[:, 0]))} of them")
    xyz = coords[:, 1:].astype(np.int64)
    beyond = (np.abs(xyz) >= COORD_LIMIT).any(axis=1)
    if beyond.any():
        row = np.flatnonzero(beyond)[0]
        raise ValueError(f"coords: expected values within +-{COORD_LIMIT}, given {coords[row].tolist()} in row {row}")
    order = np.argsort(_keys(xyz), kind="stable")
    same = np.flatnonzero(np.diff(_keys(xyz)[order]) == 0)
    if len(same):
        row = order[same[0] + 1]
        raise ValueError(f"coords: expected every row once, given {coords[row].tolist()} again in row {row}")


def _keys(xyz: np.ndarray) -> np.ndarray:
    """One int64 for each row of `xyz` [N, 3], ascending by (x, y, z).

    A step out of the range never ends at the key of a row in range: the value it would need, -COORD_LIMIT, is outside.
    """
    bits = 21
    shifted = xyz + COORD_LIMIT
    return (shifted[:, 0] << (2 * bits)) | (shifted[:, 1] << bits) | shifted[:, 2]


def _coarsened(xyz: np.ndarray, colours: np.ndarray, canvas_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Halves the resolution until a voxel is a few pixels of the canvas; its colour is the mean of its parts."""
    while len(xyz):
        if _axes(xyz, canvas_size) is not None:
            return xyz - xyz.min(axis=0), colours
        coarse = xyz >> 1
        _, first, owner, count = np.unique(_keys(coarse), return_index=True, return_inverse=True, return_counts=True)
        sums = np.stack([np.bincount(owner, column) for column in colours.T], axis=1)
        xyz, colours = coarse[first], sums / count[:, None]
    return xyz, colours


def _axes(xyz: np.ndarray, canvas_size: int) -> np.ndarray | None:
    """Where one step along x, y, z goes on the canvas, whole pixels [3, 2] as (right, down); None if too small to draw.

    The largest at which the voxels fit between the margins, up to a sixth of the picture for a single voxel.
    """
    sin_a, cos_a, sin_e, cos_e = np.sin(AZIMUTH), np.cos(AZIMUTH), np.sin(ELEVATION), np.cos(ELEVATION)
    unit = np.array([[-sin_a, sin_e * cos_a], [cos_a, sin_e * sin_a], [0, -cos_e]])
    low, high = _outline(xyz, unit)
    scale = min(canvas_size * (1 - 2 * MARGIN) / (high - low).max(), canvas_size / 6)
    if scale < 5:  # rounding would bend the view too much
        return None
    return np.rint(unit * scale).astype(np.int64)


def _outline(xyz: np.ndarray, axes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Top left and bottom right corner of all voxels as projected, each [2]."""
    places = xyz @ axes
    corners = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)]) @ axes
    return places.min(axis=0) + corners.min(axis=0), places.max(axis=0) + corners.max(axis=0)


def _drawn(xyz: np.ndarray, colours: np.ndarray, size: int, canvas_size: int) -> Image.Image:
    """Paints the faces towards the viewer from far to near and scales the canvas down."""
    axes = _axes(xyz, canvas_size)
    low, high = _outline(xyz, axes)
    width, height = (int(extent) for extent in high - low)
    occupied = np.sort(_keys(xyz))
    directions = np.eye(3, dtype=np.int64)
    faces, palette = [], []
    for axis in range(3):
        normal, first, second = np.roll(directions, -axis, axis=0)
        front = xyz + normal  # [N, 3]
        ring = [i * first + j * second for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)]
        beside = sum(_contains(occupied, front + offset) for offset in ring)
        light = LIGHT[axis] * (1 - OCCLUSION * beside)
        palette.append((DARKEST + (1 - DARKEST) * colours) * light[:, None])
        visible = ~_contains(occupied, front)
        corner = (front @ axes - low) @ (1, width)  # [N], as an index of the canvas
        stencil = _parallelogram(first @ axes, second @ axes) @ (1, width)  # [P], relative to the corner
        faces.append((visible, corner, stencil, axis * len(xyz)))

    # x + y + z ascends towards the viewer, who stands where all three axes point. Voxels of equal sum never hide one
    # another, so one sum after the other is painted, in any order inside.
    nearness = xyz.sum(axis=1)
    order = np.argsort(nearness, kind="stable")
    painted = np.full(width * height, -1, np.int32)  # the face seen at each pixel
    for layer in np.split(order, np.flatnonzero(np.diff(nearness[order])) + 1):
        for visible, corner, stencil, first_face in faces:
            rows = layer[visible[layer]]
            painted[corner[rows, None] + stencil] = (first_face + rows)[:, None]

    # Rounded axes may outgrow a small canvas.
    canvas = np.array(_backdrop(max(canvas_size, width, height)))
    top, left = (len(canvas) - height) // 2, (len(canvas) - width) // 2
    window = canvas[top : top + height, left : left + width]
    painted = painted.reshape(height, width)
    seen = painted >= 0
    window[seen] = np.rint(255 * np.concatenate(palette)).astype(np.uint8)[painted[seen]]
    return Image.fromarray(canvas).resize((size, size), Image.Resampling.BOX)


def _contains(keys: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    """Which rows of `xyz` [N, 3] are among the sorted `keys`: bool [N]."""
    wanted = _keys(xyz)
    return keys[np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)] == wanted


def _parallelogram(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pixels (right, down), [P, 2], of the parallelogram from the origin along `a` and `b`, whole vectors [2].

    Where parallelograms share a side, each pixel along it belongs to exactly one of them: a pixel is sampled at its
    centre, moved by so little, and so crookedly, that no sample lies on a side of less than 2^12 pixels. In integers.
    """
    corners = np.stack([0 * a, a, b, a + b])
    x, y = (np.arange(corners[:, i].min(), corners[:, i].max()) for i in (0, 1))
    pixels = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    unit = 1 << 26  # of half a pixel
    sample = (2 * pixels + 1) * unit + (1, 1 << 12)
    det = a[0] * b[1] - a[1] * b[0]
    if det < 0:
        a, b, det = b, a, -det
    along_a = sample[:, 0] * b[1] - sample[:, 1] * b[0]
    along_b = a[0] * sample[:, 1] - a[1] * sample[:, 0]
    whole = 2 * unit * det
    inside = (along_a > 0) & (along_a < whole) & (along_b > 0) & (along_b < whole)
    return pixels[inside]


def _backdrop(size: int) -> Image.Image:
    """A vertical gradient, `size` x `size`."""
    top, bottom = (np.array(colour, np.float64) for colour in BACKGROUND)
    rows = top + (bottom - top) * ((np.arange(size) + 0.5) / size)[:, None]  # [size, 3]
    return Image.fromarray(np.repeat(np.rint(rows).astype(np.uint8)[:, None], size, axis=1))
