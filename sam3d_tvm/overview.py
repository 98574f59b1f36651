"""Pictures of what was generated, for people to look at."""

from PIL import Image

from sam3d_tvm.mesh.mesh import Mesh
from sam3d_tvm.mesh.picture import mesh_picture
from sam3d_tvm.splat.cameras import orbit_box
from sam3d_tvm.splat.gaussians import Gaussians
from sam3d_tvm.splat.picture import contact_sheet, splat_picture

VIEWS = 4


def overview(gaussians: Gaussians | None, mesh: Mesh | None, size: int = 320) -> Image.Image | None:
    """A sheet of views from around the object, `size` pixels each: Gaussians above, the mesh below; None if there is neither.
    Equal input gives equal pictures."""
    rows = []
    if gaussians is not None and len(gaussians):
        cameras = orbit_box(*gaussians.bounds, VIEWS)
        rows += [splat_picture(gaussians, camera, size) for camera in cameras]
    if mesh is not None and len(mesh.faces):
        cameras = orbit_box(mesh.vertices.min(0), mesh.vertices.max(0), VIEWS)
        rows += [mesh_picture(mesh, camera, size) for camera in cameras]
    return contact_sheet(rows, VIEWS) if rows else None
