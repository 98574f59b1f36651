"""Pictures of Gaussians, on the CPU: elliptical weighted averages (Zwicker et al., EWA Splatting, 2002), nearest first.

A Gaussian is projected with its covariance, the perspective being linear around its centre. Its ellipse is cut into rows of
pixels and those into (Gaussian, pixel) pairs, all in the order of depth, chunk by chunk. Pairs of a chunk are brought together
by pixel; what is still seen through the nearer ones of a pixel is the exponential of a running sum of log(1 - alpha).
"""

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from sam3d_tvm.checks import check_size
from sam3d_tvm.pose import quaternion_to_matrix
from sam3d_tvm.splat.cameras import Camera
from sam3d_tvm.splat.gaussians import Gaussians

WHITE = (255, 255, 255)
LARGEST_SIZE = 4096
NEAR = 0.001  # depth, in world units, from which Gaussians are drawn
LOW_PASS = 0.3  # variance of the pixel's own filter, in pixels squared
REACH = 3.0  # standard deviations at which a Gaussian ends
LEAST_ALPHA = 1 / 255  # below which a pixel is not touched
LARGEST_ALPHA = 0.99  # so that its logarithm is finite
OPAQUE = 1 / 4096  # what is seen through less is not drawn
BEYOND = 1.3  # half pictures from the middle, up to which perspective is followed
CHUNK = 1 << 19  # pairs at a time, more for a single large Gaussian
GAP = 4  # pixels between the pictures of a contact sheet


def splat_picture(
    gaussians: Gaussians, camera: Camera, size: int = 400, background: tuple[int, int, int] = WHITE
) -> Image.Image:
    """An RGB picture of `size` x `size` pixels of N Gaussians, over `background`, three integers in 0..255.

    A pixel that a Gaussian of opacity o and projected covariance C meets at a distance d from its centre gets

        alpha = min(o sqrt(det C / det F) exp(-d^T F^-1 d / 2), 0.99),    F = C + 0.3 identity

    where that is at least 1/255 and within 3 standard deviations. Small Gaussians thus become weaker, not larger. Those whose
    centre is not at least 0.001 in front of the camera are not drawn. Memory is bounded but for some 300 bytes a Gaussian.
    Equal input gives equal bytes. Raises ValueError for a size outside 1 to 4096 and another background.
    """
    check_size("size", size, 1)
    if size > LARGEST_SIZE:
        raise ValueError(f"size: expected an integer up to {LARGEST_SIZE}, given {size}")
    if np.shape(background) != (3,) or not all(isinstance(c, (int, np.integer)) and 0 <= c <= 255 for c in background):
        raise ValueError(f"background: expected three integers in 0..255, given {background!r}")
    seen, colours = np.ones(size * size), np.zeros((size * size, 3))
    for pairs in _Ellipses(gaussians, camera, size).chunks(seen):
        _composite(*pairs, seen, colours)
    colours += seen[:, None] * (np.asarray(background) / 255)
    return Image.fromarray(np.rint(255 * colours).astype(np.uint8).reshape(size, size, 3))


def contact_sheet(pictures: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures of equal size in rows of `columns`, on white. ValueError for none, for other sizes, and columns below 1."""
    check_size("columns", columns, 1)
    sizes = sorted({picture.size for picture in pictures})
    if len(sizes) != 1:
        raise ValueError(f"pictures: expected one or more of equal size, given {len(pictures)} of sizes {sizes}")
    columns = min(columns, len(pictures))
    width, height = sizes[0]
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), WHITE)
    for i, picture in enumerate(pictures):
        sheet.paste(picture, (i % columns * (width + GAP), i // columns * (height + GAP)))
    return sheet


class _Ellipses:
    """The Gaussians that a picture shows, projected, nearest first; all arrays [N]."""

    def __init__(self, gaussians: Gaussians, camera: Camera, size: int):
        self.size = size
        viewed = camera.view(gaussians.xyz)
        near = np.flatnonzero(viewed[:, 2] >= NEAR)
        near = near[np.argsort(viewed[near, 2], kind="stable")]
        viewed = viewed[near]
        depth = viewed[:, 2:]
        slope = viewed[:, :2] / depth
        centre = size * (0.5 + camera.focal * slope)  # [N, 2]
        # The derivative of the projection, far outside of the picture that of its border, applied to the axes of the Gaussian.
        axes = camera.rotation @ quaternion_to_matrix(gaussians.rotation[near]) * gaussians.scaling[near, None]  # [N, 3, 3]
        limit = BEYOND * 0.5 / camera.focal
        spread = axes[:, :2] - np.clip(slope, -limit, limit)[:, :, None] * axes[:, 2:]
        spread *= (size * camera.focal / depth)[:, :, None]  # [N, 2, 3], in pixels
        (xx, yy), xy = np.moveaxis((spread**2).sum(-1), -1, 0), (spread[:, 0] * spread[:, 1]).sum(-1)
        area = np.maximum(xx * yy - xy * xy, 0)
        xx, yy = xx + LOW_PASS, yy + LOW_PASS
        # As a product: along a row of pixels the Gaussian has its own variance and, by a shear, its own centre.
        self.shear = xy / yy
        self.variance_y, self.variance = yy, xx - self.shear * xy
        self.alpha = gaussians.opacity[near] * np.sqrt(area / (self.variance * yy))
        with np.errstate(divide="ignore"):  # of opacity 0: nothing to draw
            self.reach = np.clip(2 * np.log(self.alpha / LEAST_ALPHA), 0, REACH**2)  # of the exponent, doubled
        extent = np.sqrt(self.reach[:, None] * np.stack([xx, yy], -1))
        self.first = np.ceil(np.clip(centre - extent - 0.5, 0, size)).astype(np.int64)  # [N, 2], right and down
        self.end = np.floor(np.clip(centre + extent + 0.5, 0, size)).astype(np.int64)
        self.centre = centre
        self.colours = gaussians.colors[near].astype(np.float64)  # [N, 3]

    def chunks(self, seen: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """(pixel, alpha, colours) of pairs, [P], [P] and [P, 3], where a Gaussian's pairs follow those of the nearer ones.

        Without those at pixels that are opaque by then: `seen` [size^2] is what is left of the light from behind.
        """
        width, height = np.maximum(self.end - self.first, 0).T
        ends = np.cumsum(width * height)
        start = 0
        while start < len(ends):
            before = ends[start - 1] if start else 0
            stop = max(int(np.searchsorted(ends, before + CHUNK, "right")), start + 1)
            yield self._pairs(np.flatnonzero(width[start:stop] * height[start:stop]) + start, seen)
            start = stop

    def _pairs(self, which: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What `chunks` yields, for the ellipses `which` [n]."""
        owner, y = _ranges(self.first[which, 1], self.end[which, 1])  # [R], rows of pixels
        owner = which[owner]
        down = y + 0.5 - self.centre[owner, 1]
        centre = self.centre[owner, 0] + self.shear[owner] * down
        exponent = down**2 / self.variance_y[owner]
        extent = np.sqrt(np.maximum(self.reach[owner] - exponent, 0) * self.variance[owner])
        first = np.ceil(np.clip(centre - extent - 0.5, 0, self.size)).astype(np.int64)
        end = np.floor(np.clip(centre + extent + 0.5, 0, self.size)).astype(np.int64)
        row, x = _ranges(first, np.maximum(end, first))
        pixel = (y * self.size)[row] + x
        visible = np.flatnonzero(seen[pixel] > OPAQUE)
        row, x, pixel = row[visible], x[visible], pixel[visible]  # [P]
        alpha = self.alpha[owner] * np.exp(-0.5 * exponent)
        alpha = alpha[row] * np.exp((x + 0.5 - centre[row]) ** 2 * (-0.5 / self.variance[owner])[row])
        return pixel, np.minimum(alpha, LARGEST_ALPHA), self.colours[owner[row]]


def _composite(pixel: np.ndarray, alpha: np.ndarray, colour: np.ndarray, seen: np.ndarray, colours: np.ndarray) -> None:
    """Puts pairs as of `_Ellipses.chunks` behind what the picture has, colours [size^2, 3], with what is `seen` [size^2]."""
    if len(pixel) == 0:
        return
    bits = len(pixel).bit_length()
    keys = np.sort((pixel << bits) | np.arange(len(pixel)))  # by pixel, then by depth
    order, pixel = keys & ((1 << bits) - 1), keys >> bits
    alpha = alpha[order]
    first = np.flatnonzero(np.diff(pixel, prepend=-1))  # of each pixel
    logs = np.log1p(-alpha)
    before = np.cumsum(logs) - logs
    before -= np.repeat(before[first], np.diff(first, append=len(pixel)))
    weight = alpha * np.exp(before) * seen[pixel]
    colours[pixel[first]] += np.add.reduceat(weight[:, None] * colour[order], first)
    seen[pixel[first]] *= np.exp(np.add.reduceat(logs, first))


def _ranges(first: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The integers from first [n] to end [n], exclusive, one range after the other, and the number of the range of each."""
    counts = end - first
    number = np.repeat(np.arange(len(counts)), counts)
    return number, np.arange(len(number)) + (first - (np.cumsum(counts) - counts))[number]
