"""A sheet for people to look at: the photo with its mask, and views of what was generated, with lines to say what they are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from sam3d_tvm.frames import CAMERA, OBJECT, Frame
from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.mesh.picture import LARGEST_SIZE, mesh_picture
from sam3d_tvm.photo.camera import PhotoCamera
from sam3d_tvm.pose import Pose
from sam3d_tvm.splat.cameras import Camera, camera_towards, orbit_box
from sam3d_tvm.splat.gaussians import Gaussians
from sam3d_tvm.splat.picture import splat_picture

VIEWS = 4
ELEVATION = 20.0  # degrees
GAP = 4  # pixels between pictures
TEXT, HEADING = 13, 17  # pixels, of letters
WHITE, BLACK, RED = (255, 255, 255), (30, 30, 30), (200, 0, 0)
LARGEST_PHOTO = 960  # pixels along the longer side, of what is kept of a photo
DIM = 0.25  # how much of its colour is left of what the mask leaves out
OUTLINE = 2  # pixels
SQUARE = 0.05  # by which width and height of a photo's pixels may differ, as a ratio
RANDOM = "RANDOM WEIGHTS: shapes and colours have no meaning"


@dataclass(frozen=True)
class _Tile:
    """A picture, and the lines below it."""

    picture: Image.Image
    lines: tuple[str, ...]


def thumbnail(rgba: np.ndarray) -> np.ndarray:
    """A photo uint8 [H, W, 4] in at most 960 x 960 pixels, uint8 [h, w, 4]; the colours of what the mask leaves out stay."""
    step = max(1, max(rgba.shape[:2]) // (2 * LARGEST_PHOTO))  # of a large photo only some pixels are copied
    rgba = rgba[::step, ::step]
    height, width = rgba.shape[:2]
    scale = min(1, LARGEST_PHOTO / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # Apart, as pictures with an alpha channel are resized with their colours multiplied by it.
    parts = (Image.fromarray(np.ascontiguousarray(part)) for part in (rgba[..., :3], rgba[..., 3]))
    color, mask = (np.asarray(part.resize(size, Image.Resampling.BOX)) for part in parts)
    return np.dstack([color, mask])


def overview(
    gaussians: Gaussians | None,
    mesh: Mesh | None,
    photo: np.ndarray | None = None,
    pose: Pose | None = None,
    random_weights: bool = False,
    size: int = 320,
    camera: PhotoCamera | None = None,
    frame: Frame = OBJECT,
) -> Image.Image | None:
    """A sheet of views of `size` pixels from around the object: Gaussians above, the mesh below; None if there is neither.

    With a `photo`, uint8 [H, W, 4], it is at the head: what its mask leaves out is pale, and the mask has an outline. With the
    `pose` of the object in the photo's camera, it is beside the photo as seen from there, if it is in front of it: in the very
    place that it has in the photo where its `camera` is known, else as large as it fits. `frame`: of what is shown, OBJECT, or
    CAMERA, in which it has its place without a pose, as scenes have. Below every
    view is where its camera is: azimuth around the axis that is up, counterclockwise from the front, elevation above the
    ground, and position in the object's units. `random_weights` is said in red. Equal input gives equal pictures.
    """
    rows = []
    views: list[tuple[str, tuple, Callable[[Camera], Image.Image]]] = []
    if gaussians is not None and len(gaussians):
        views.append((f"{len(gaussians):,} Gaussians", gaussians.bounds, lambda camera: splat_picture(gaussians, camera, size)))
    if mesh is not None and len(mesh.faces):
        box = mesh.vertices.min(0).astype(np.float64), mesh.vertices.max(0).astype(np.float64)
        title = f"Mesh of {len(mesh.faces):,} triangles"
        views.append((title, box, lambda camera: mesh_picture(mesh, camera, size)))
    if not views:
        return None
    frame = frame if gaussians is None else gaussians.frame
    if photo is not None:
        has_place = pose is not None or frame == CAMERA
        width = (VIEWS * size - GAP) // 2 if has_place and camera is not None else VIEWS * size
        tiles = [_Tile(masked_photo(photo, width, size), ("photo, what is outside of its mask is pale",))]
        if has_place and (tile := _from_the_photo(gaussians, mesh, pose, size, camera, tiles[0].picture.size)) is not None:
            tiles.append(tile)
        rows.append(("Photo and mask", tiles))
    for title, box, draw in views:
        cameras = orbit_box(*box, VIEWS, ELEVATION, frame=frame)
        rows.append((f"{title} from around", [_Tile(draw(camera), _place(i, camera)) for i, camera in enumerate(cameras)]))
    return _sheet(rows, VIEWS * (size + GAP) - GAP, RANDOM if random_weights else None)


def masked_photo(photo: np.ndarray, width: int, height: int) -> Image.Image:
    """A photo uint8 [H, W, 4] within `width` x `height` pixels: pale where its mask is not, with a red outline of the mask."""
    scale = min(width / photo.shape[1], height / photo.shape[0])
    size = max(1, round(photo.shape[1] * scale)), max(1, round(photo.shape[0] * scale))
    color = Image.fromarray(np.ascontiguousarray(photo[..., :3])).resize(size, Image.Resampling.BICUBIC)
    mask = Image.fromarray(np.ascontiguousarray(photo[..., 3])).resize(size, Image.Resampling.BILINEAR)
    color, inside = np.asarray(color).astype(np.float64), np.asarray(mask) >= 128
    shown = np.where(inside[..., None], color, DIM * color + (1 - DIM) * 255)
    around = np.pad(inside, OUTLINE)
    near = np.zeros_like(inside)
    for down in range(2 * OUTLINE + 1):
        for right in range(2 * OUTLINE + 1):
            near |= around[down : down + size[1], right : right + size[0]]
    shown[near & ~inside] = RED
    return Image.fromarray(np.rint(shown).astype(np.uint8))


def _from_the_photo(
    gaussians: Gaussians | None,
    mesh: Mesh | None,
    pose: Pose | None,
    size: int,
    photo_camera: PhotoCamera | None,
    photo_size: tuple[int, int],
) -> _Tile | None:
    """The object as the photo's camera sees it: in a picture of `photo_size` if that camera is known, else by one that is
    turned towards it; None where it is not in front."""
    if gaussians is not None and len(gaussians):
        placed, draw = gaussians if pose is None else gaussians.transformed(pose), splat_picture
        low, high = placed.bounds
    else:
        placed, draw = mesh if pose is None else mesh.transformed(pose.matrix()[0]), mesh_picture
        low, high = placed.vertices.min(0), placed.vertices.max(0)
    ahead = (low + high) @ CAMERA.away > 0
    if ahead and photo_camera is not None and (whole := _as_in_the_photo(placed, draw, photo_camera, photo_size)) is not None:
        return _Tile(whole, ("from the photo's camera",))
    camera = camera_towards(np.zeros(3), low, high, CAMERA) if ahead else None
    return None if camera is None else _Tile(draw(placed, camera, size), ("from where the photo was taken",))


def _as_in_the_photo(placed, draw: Callable, camera: PhotoCamera, size: tuple[int, int]) -> Image.Image | None:
    """Gaussians or a mesh in `CAMERA` in a picture of `size`, (width, height), of a photo by its camera; None for a camera
    whose pixels are no squares, or whose middle is far from that of the photo, which pictures here do not have."""
    width, height = size
    across, down = camera.intrinsics[0, 0] * width, camera.intrinsics[1, 1] * height  # focal lengths in pixels
    middle = camera.intrinsics[:2, 2] * size
    half = int(np.ceil(np.maximum(middle, size - middle).max()))  # of a square around the middle that has all of the photo
    if abs(across / down - 1) > SQUARE or not 0 < 2 * half <= LARGEST_SIZE:
        return None
    axes = np.array([CAMERA.right, np.negative(CAMERA.up), CAMERA.away], np.float64)
    picture = draw(placed, Camera(axes, np.zeros(3), across / (2 * half)), 2 * half)
    left, top = np.rint(half - middle).astype(int)
    return picture.crop((left, top, left + width, top + height))


def _place(number: int, camera: Camera) -> tuple[str, str]:
    """Where the camera of that number in an orbit is."""
    x, y, z = (f"{value + 0.0:.2f}" for value in np.round(camera.position, 2))
    return f"azimuth {360 * number // VIEWS}°, elevation {ELEVATION:g}°", f"camera at ({x}, {y}, {z})"


def _sheet(rows: Sequence[tuple[str, Sequence[_Tile]]], width: int, warning: str | None) -> Image.Image:
    """Rows of tiles on white, each below its title; the warning above all."""
    text, heading = _font(TEXT), _font(HEADING)
    line, title_height = TEXT + 5, HEADING + 10
    heights = [
        title_height + max(tile.picture.height for tile in tiles) + max(len(tile.lines) for tile in tiles) * line
        for _, tiles in rows
    ]
    top = 0 if warning is None else title_height
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * len(rows)), WHITE)
    draw = ImageDraw.Draw(sheet)
    if warning is not None:
        draw.text((GAP, 4), warning, RED, heading)
    for (title, tiles), height in zip(rows, heights, strict=True):
        draw.text((GAP, top + 4), title, BLACK, heading)
        left = 0
        for tile in tiles:
            sheet.paste(tile.picture, (left, top + title_height))
            for number, words in enumerate(tile.lines):
                draw.text((left + GAP, top + title_height + tile.picture.height + 2 + number * line), words, BLACK, text)
            left += tile.picture.width + GAP
        top += height + GAP
    return sheet


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Pillow's own font; where Pillow was built without FreeType there is one size of it."""
    return ImageFont.load_default(size) if features.check("freetype2") else ImageFont.load_default()
