"""Photos of objects as a user would bring them: a camera, light, a background and what is in the way; with mask and point map.

A photo is made at the resolution at which the pipeline looks at it: the object is about `BOX` pixels wide, so that the crop
that `sam3d_tvm.photo.preprocess` takes is about 112 wide. That function makes the inputs of every model from it, here as in
use.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from sam3d_tvm.pose import ROTATION_6D_MEAN, ROTATION_6D_STD
from sam3d_tvm.splat.cameras import Camera
from training.render import Surface, pixel_rays, trace
from training.shapes import CONTENT, INSIDE, MATERIALS, OUTSIDE, RIM, SAUCER, Object, sample_object

BOX = 94  # pixels of the longer side of an object's box
SEEN_AT_LEAST = 0.1  # of its window is what an object must cover
MOST_HIDDEN = 0.25  # of the object, by what is in the way or beyond the edge
HELD_OUT = 1_000_000  # seeds from here on are never trained on
POINTMAPS = 0.3  # of the photos have one


@dataclass(frozen=True, eq=False)
class View:
    """An object before a camera: the window, (right, down) at depth 1, and what is seen in BOX x BOX pixels of it."""

    camera: Camera
    low: np.ndarray
    high: np.ndarray
    surface: Surface


@dataclass(frozen=True, eq=False)
class Photo:
    """rgba: uint8 [H, W, 4], alpha is the mask. pointmap: float32 [3, H, W] in `frames.CAMERA`, NaN where there is nothing, one
    unit being the cube's side; or None. palette: float32 [MATERIALS, 3] in 0..1, the colours in this light, shadows left
    out."""

    rgba: np.ndarray
    pointmap: np.ndarray | None
    palette: np.ndarray


@dataclass(frozen=True, eq=False)
class Example:
    """An object with a photo of it, its camera, and that camera's `rotation_6d` [6]."""

    object: Object
    camera: Camera
    rgba: np.ndarray
    pointmap: np.ndarray | None
    palette: np.ndarray
    rotation: np.ndarray


def sample_camera(random: np.random.Generator) -> Camera:
    """A camera in front of the cube (towards -y), at a random height, a little turned about its axis, of 15 to 50 degrees."""
    elevation = math.radians(random.uniform(3, 78) if random.random() < 0.2 else random.uniform(15, 60))
    roll = math.radians(random.normal() * 5)
    half = math.radians(random.uniform(15, 50)) / 2
    forward = np.array([0, math.cos(elevation), -math.sin(elevation)])
    right, down = np.array([1.0, 0, 0]), np.cross(forward, [1.0, 0, 0])
    rotation = np.stack(
        [math.cos(roll) * right + math.sin(roll) * down, math.cos(roll) * down - math.sin(roll) * right, forward]
    )
    return Camera(rotation, -forward * (0.62 / math.tan(half) + 0.3), 0.5 / math.tan(half))


def rotation_6d(camera: Camera) -> np.ndarray:
    """float64 [6]: the directions left and up of a camera, as `pose.rotation_6d_to_matrix` takes them."""
    return np.concatenate([-camera.rotation[0], -camera.rotation[1]])


def normalised_rotation(rotation: np.ndarray) -> np.ndarray:
    """float32 [..., 6]: what the model is to give, of `rotation_6d`."""
    return ((rotation - ROTATION_6D_MEAN) / ROTATION_6D_STD).astype(np.float32)


def look_at(thing: Object, camera: Camera) -> View | None:
    """An object as a camera sees it, in a square around its box; None where too little is seen of it."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) * thing.half
    seen = camera.view(corners)
    places = seen[:, :2] / seen[:, 2:]
    low, high = places.min(0), places.max(0)
    middle, half = (low + high) / 2, (high - low).max() / 2 * 1.02
    surface = trace(thing, camera, pixel_rays(camera, middle - half, middle + half, BOX))
    if surface.hit.float().mean() < SEEN_AT_LEAST:
        return None
    return View(camera, middle - half, middle + half, surface)


def _colours(random: np.random.Generator, count: int) -> np.ndarray:
    """Random colours float32 [count, 3]: every hue, a third of them near white, grey or black."""
    hue, saturation, value = random.random(count), random.beta(1.3, 1.1, count), random.uniform(0.15, 1, count)
    plain = random.random(count)
    saturation = np.where(plain < 0.33, saturation * 0.15, saturation)
    value = np.where(plain < 0.2, random.uniform(0.8, 1, count), value)
    wheel = np.clip(np.abs((hue[:, None] + np.array([0, 2 / 3, 1 / 3])) % 1 * 6 - 3) - 1, 0, 1)
    return (value[:, None] * (1 - saturation[:, None] * (1 - wheel))).astype(np.float32)


CONTENTS = np.float32(
    [[0.35, 0.2, 0.1], [0.72, 0.48, 0.25], [0.6, 0.28, 0.1], [0.93, 0.9, 0.85], [0.8, 0.25, 0.12], [0.45, 0.5, 0.2]]
)


def sample_palette(random: np.random.Generator) -> np.ndarray:
    """Colours of materials float32 [MATERIALS, 3], before light. In half of them the inside is white, and rim and inside or
    handle and outside are of one glaze; contents are coffee, tea, milk and soups, or anything."""
    found = _colours(random, MATERIALS)
    if random.random() < 0.5:
        found[INSIDE] = random.uniform(0.85, 1) - np.array([0, 0.03, 0.08]) * random.random()
    elif random.random() < 0.5:
        found[INSIDE] = found[OUTSIDE]
    found[RIM] = found[INSIDE] if random.random() < 0.6 else found[RIM]
    if random.random() < 0.75:
        found[3] = found[OUTSIDE]  # handle and spout
    if random.random() < 0.5:
        found[SAUCER] = found[OUTSIDE]
    if random.random() < 0.75:
        found[CONTENT] = CONTENTS[random.integers(len(CONTENTS))] * random.uniform(0.7, 1.1)
    return np.clip(found, 0, 1).astype(np.float32)


def _noise(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A texture float32 [height, width] in 0..1, of several scales, along an axis in half of all cases."""
    stretch = (1, 1) if random.random() < 0.5 else (random.uniform(0.1, 1), random.uniform(1, 4))
    total = np.zeros((height, width), np.float32)
    for cells in (3, 8, 24):
        shape = [max(2, int(cells * s)) for s in stretch]
        plane = Image.fromarray(random.standard_normal(shape, np.float32))
        total += np.asarray(plane.resize((width, height), Image.Resampling.BILINEAR)) / np.float32(cells**0.5)
    if random.random() < 0.5 and height == width:
        total = total.T
    return 1 / (1 + np.exp(-total * np.float32(random.uniform(0, 2))))


def _background(random: np.random.Generator, height: int, width: int) -> np.ndarray:
    """float32 [height, width, 3]: a texture of two colours, often a table before a wall, and some things that lie about."""
    colours = _colours(random, 8)
    part = _noise(random, height, width)[..., None]
    found = colours[0] * part + colours[1] * (1 - part)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / max(height, width) - 0.5
    if random.random() < 0.4:
        tilt = random.normal() * 0.3
        found = np.where((y * math.cos(tilt) + x * math.sin(tilt) < random.uniform(-0.5, 0.1))[..., None], colours[2], found)
    for i in range(random.integers(0, 3)):
        (cx, cy), (rx, ry) = random.uniform(-0.5, 0.5, 2), random.uniform(0.05, 0.4, 2)
        found = np.where(
            (((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1)[..., None], colours[3 + i] * (1 + 0.3 * x[..., None]), found
        )
    return found


def _lit(random: np.random.Generator, surface: Surface, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Colours [H, 3] of what is seen under a lamp and a sky, with a glaze's highlight; and the palette in that light."""
    normals = surface.normals.numpy()
    turn, height = random.uniform(0, 2 * np.pi), random.uniform(0.2, 0.95)
    lamp = np.array([math.cos(turn) * math.sqrt(1 - height**2), math.sin(turn) * math.sqrt(1 - height**2), height], np.float32)
    sky, light = random.uniform(0.3, 0.75), random.uniform(0.2, 0.8)
    diffuse = np.clip(normals @ lamp, 0, 1)
    between = lamp + np.float32([0, -0.7, 0.7])
    glaze = np.clip(normals @ (between / np.linalg.norm(between)), 0, 1) ** random.uniform(10, 80) * random.uniform(0, 0.6)
    tint, gamma = random.uniform(0.8, 1.12, 3).astype(np.float32), random.uniform(0.8, 1.25)
    shade = (sky + light * diffuse) * (0.3 + 0.7 * surface.openness.numpy())
    colours = palette[surface.materials.numpy()] * shade[:, None] + glaze[:, None] * (random.random() < 0.6)
    even = sky + 0.5 * light
    return np.clip(colours * tint, 0, 1) ** gamma, (np.clip(palette * even * tint, 0, 1) ** gamma).astype(np.float32)


def take_photo(random: np.random.Generator, view: View, pointmap: bool) -> Photo:
    """A photo of what `view` shows, in random colours and light, before a random background, in parts hidden or cut off."""
    colours, palette = _lit(random, view.surface, sample_palette(random))
    height, width = (int(n) for n in random.integers(BOX + 6, BOX + 80, 2))
    cut = random.random() < 0.12  # at an edge of the photo
    top, left = (int(random.integers(-BOX // 6 if cut else 0, n - BOX + 1)) for n in (height, width))
    hit = view.surface.hit.numpy().reshape(BOX, BOX)
    layer = np.zeros((BOX, BOX, 4), np.float32)
    layer[hit, :3], layer[hit, 3] = colours, 1
    rows, columns = slice(max(top, 0), top + BOX), slice(max(left, 0), left + BOX)
    inside = layer[max(-top, 0) :, max(-left, 0) :]
    photo = _background(random, height, width)
    alpha = np.zeros((height, width), np.float32)
    _shadow(random, photo, top, left)
    part = inside[..., 3:]
    photo[rows, columns] = photo[rows, columns] * (1 - part) + inside[..., :3] * part
    alpha[rows, columns] = inside[..., 3]
    if random.random() < 0.2:
        _in_the_way(random, photo, alpha, hit.sum())
    picture = Image.fromarray((np.clip(photo, 0, 1) * 255).astype(np.uint8))
    picture = picture.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 1.1)))
    grain = random.standard_normal((height, width, 3), np.float32) * np.float32(random.uniform(0, 7))
    rgb = np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8)
    points = _points(random, view, (height, width), (top, left)) if pointmap else None
    return Photo(np.dstack([rgb, (alpha * 255).astype(np.uint8)]), points, palette)


def _shadow(random: np.random.Generator, photo: np.ndarray, top: int, left: int) -> None:
    """Darken the ground around the object's foot."""
    y, x = np.mgrid[0 : photo.shape[0], 0 : photo.shape[1]].astype(np.float32)
    cx, cy = left + BOX * random.uniform(0.3, 0.7), top + BOX * random.uniform(0.7, 0.95)
    rx, ry = BOX * random.uniform(0.3, 0.6), BOX * random.uniform(0.1, 0.35)
    far = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2
    photo *= (1 - random.uniform(0, 0.6) * np.exp(-far)).astype(np.float32)[..., None]


def _in_the_way(random: np.random.Generator, photo: np.ndarray, alpha: np.ndarray, whole: int) -> None:
    """Something oblong before the object, unless it hid too much of it."""
    height, width = alpha.shape
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    rows, columns = np.nonzero(alpha)
    at = random.integers(len(rows))
    turn, reach, thickness = random.uniform(0, np.pi), random.uniform(10, 60), random.uniform(3, 9)
    along = (x - columns[at]) * math.cos(turn) + (y - rows[at]) * math.sin(turn)
    across = (y - rows[at]) * math.cos(turn) - (x - columns[at]) * math.sin(turn)
    thing = (np.abs(along) < reach) & (np.abs(across) < thickness)
    if np.count_nonzero(alpha * ~thing) > (1 - MOST_HIDDEN) * whole:
        photo[thing] = _colours(random, 1)[0] * (1 + 0.3 * (across[thing] / thickness)[:, None])
        alpha[thing] = 0


def _points(random: np.random.Generator, view: View, size: tuple[int, int], corner: tuple[int, int]) -> np.ndarray:
    """The point map [3, H, W] of a photo, in `frames.CAMERA`: the object, the ground it stands on, and holes along its edge."""
    (height, width), (top, left) = size, corner
    step = (view.high - view.low) / BOX
    y, x = np.mgrid[0:height, 0:width] + 0.5
    own = np.stack([view.low[0] + (x - left) * step[0], view.low[1] + (y - top) * step[1], np.ones((height, width))], -1)
    down = (own @ view.camera.rotation)[..., 2]
    lowest = view.surface.points[:, 2].min().item() - view.camera.position[2]
    with np.errstate(divide="ignore"):
        depth = np.where(down < -1e-3, lowest / down, np.nan)
    depth = np.where(depth < random.uniform(4, 12), depth, np.nan)
    seen = np.full((BOX, BOX), np.nan)
    seen[view.surface.hit.numpy().reshape(BOX, BOX)] = view.surface.depth.numpy()
    inside = seen[max(-top, 0) :, max(-left, 0) :][:height, :width]
    rows, columns = slice(max(top, 0), max(top, 0) + inside.shape[0]), slice(max(left, 0), max(left, 0) + inside.shape[1])
    depth[rows, columns] = np.where(np.isfinite(inside), inside, depth[rows, columns])
    depth *= 1 + random.normal() * 0.03 + random.standard_normal(depth.shape) * 0.003  # as a depth model errs
    return (np.moveaxis(own * depth[..., None], -1, 0) * np.array([-1, -1, 1])[:, None, None]).astype(np.float32)


def sample_views(seed: int, index: int, count: int) -> tuple[Object, list[View]] | None:
    """The object of a seed and index, from `count` cameras; None where one of them sees too little of it."""
    random = np.random.default_rng([seed, index])
    thing = sample_object(random)
    views = [look_at(thing, sample_camera(random)) for _ in range(count)]
    return None if None in views else (thing, views)


def held_out(index: int, pointmap: bool = False) -> Example:
    """An object that is never trained on, with its photo: the `index`-th, the same in every run. ValueError for index < 0."""
    if index < 0:
        raise ValueError(f"index: expected 0 or more, given {index}")
    found, attempt = None, 0
    while found is None:  # the few that are hardly seen are passed over
        found = sample_views(HELD_OUT + index, attempt, 1)
        attempt += 1
    thing, (view,) = found
    photo = take_photo(np.random.default_rng([HELD_OUT + index, 2**31]), view, pointmap)
    return Example(thing, view.camera, photo.rgba, photo.pointmap, photo.palette, rotation_6d(view.camera))
