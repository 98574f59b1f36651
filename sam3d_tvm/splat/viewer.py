"""One HTML file that shows Gaussians and needs nothing else: no network, no server, no other file.

The page holds the viewer, a library from npm (see data/viewer/NOTICE.md), and the Gaussians as rows of a .splat file.
"""

import base64
import html
import os
import re
import zlib
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np

from sam3d_tvm.frames import OPENCV
from sam3d_tvm.splat.cameras import FOCAL, orbit_box
from sam3d_tvm.splat.files import splat
from sam3d_tvm.splat.gaussians import Gaussians
from sparse_ops.deploy.files import write_bytes

ELEVATION = 20.0  # degrees above the ground, of the first view
DISTANCE = 6.0  # of the viewer from the object, in units of the page: its controls are made for some such
VIEWS = 12  # around the object, into all of which it fits
DROPPED_BITS = 8  # of float32, which leaves 5 digits


def write_viewer(path: str | os.PathLike, gaussians: Gaussians, name: str | None = None) -> None:
    """Writes an HTML file in which N Gaussians can be looked at from all sides, whole or not at all.

    It begins with the first view of `orbit_box` around their bounds, upright as their frame says. `name` is what the page calls
    them, by default the name of the file. Colours, opacities and rotations are rounded to 8 bits, positions and scales to 5
    digits. Raises ValueError for a path that cannot be a file.
    """
    folder = resources.files("sam3d_tvm") / "data" / "viewer"
    values = {
        "name": html.escape(Path(path).name if name is None else name),
        "count": f"{len(gaussians):,}",
        "splat": base64.b64encode(_packed(_placed(gaussians))).decode(),
        "library": (folder / "gsplat.min.js").read_text("utf-8"),
        "focal": repr(FOCAL),
        "elevation": repr(float(np.deg2rad(ELEVATION))),
        "distance": repr(DISTANCE),
    }
    page = re.sub(r"{{(\w+)}}", lambda match: values[match[1]], (folder / "page.html").read_text("utf-8"))
    write_bytes(path, page.encode())


def _placed(gaussians: Gaussians) -> Gaussians:
    """As the page wants them: in `frames.OPENCV`, what is looked at in the origin, `DISTANCE` away."""
    gaussians = gaussians.in_frame(OPENCV)
    low, high = gaussians.bounds
    centre = (low + high) / 2
    camera = orbit_box(low, high, VIEWS, ELEVATION, frame=OPENCV)[0]
    scale = DISTANCE / np.linalg.norm(camera.position - centre)
    return replace(gaussians, xyz=scale * (gaussians.xyz - centre), log_scaling=gaussians.log_scaling + np.log(scale))


def _packed(gaussians: Gaussians) -> bytes:
    """Rows of a .splat file, positions and scales rounded. Their bytes are put together by place, which makes neighbouring ones
    alike, and deflated."""
    table = splat.rows(gaussians)
    table[:, :24] = _rounded(np.ascontiguousarray(table[:, :24]).view("<f4")).view(np.uint8)
    return zlib.compress(np.ascontiguousarray(table.T))


def _rounded(values: np.ndarray) -> np.ndarray:
    """float32, little-endian, with the last bits 0."""
    half = np.uint32(1 << (DROPPED_BITS - 1))
    return ((values.astype("<f4").view("<u4") + half) >> DROPPED_BITS << DROPPED_BITS).view("<f4")
