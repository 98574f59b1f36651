"""Texture coordinates by xatlas: charts of a mesh, cut where they have to be, laid out in one square."""

import numpy as np

from sam3d_tvm.mesh.mesh import Mesh

PADDING = 4  # pixels around a chart, at the size that xatlas plans for


def unwrap(mesh: Mesh, texture_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texture coordinates of the faces of `mesh`.

    Returns corners int32 [W], the vertex of the mesh that each vertex of the cut mesh is; faces int32 [F, 3] of those, in the
    order of the mesh; uv float32 [W, 2] from 0 to 1 within a texture of `texture_size` pixels along each side. Equal meshes
    give equal results, whatever the number of threads.
    """
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_mesh(mesh.vertices, mesh.faces.astype(np.uint32), mesh.vertex_normals)
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding = texture_size, PADDING
    atlas.generate(pack_options=pack)
    corners, faces, uv = atlas[0]
    return corners.astype(np.int32), faces.astype(np.int32), np.clip(uv, 0, 1).astype(np.float32)
